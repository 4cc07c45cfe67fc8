//! Where the threads of a daemon are that is about to be killed: the only time anybody can ask.

use std::path::Path;

/// Threads that are written down; a daemon has a few, and up to 192 that may all be stuck in the same way.
const MOST: usize = 64;
/// Lines of a kernel stack.
const DEPTH: usize = 12;

/// One line a thread: its number, name, state, and where in the kernel it waits. The stack is root's to see.
pub fn dump(pid: i32) -> Vec<String> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut tasks: Vec<_> = tasks.flatten().map(|task| task.path()).collect();
    tasks.sort();
    let mut lines: Vec<String> = tasks.iter().take(MOST).map(|task| describe(task)).collect();
    if tasks.len() > MOST {
        lines.push(format!("and {} more threads", tasks.len() - MOST));
    }
    lines
}

fn describe(task: &Path) -> String {
    let read = |name: &str| std::fs::read_to_string(task.join(name)).unwrap_or_default();
    let status = read("status");
    let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or("?").trim();
    let stack = read("stack");
    let stack: Vec<&str> = stack.lines().filter_map(|line| line.split_whitespace().nth(1)).take(DEPTH).collect();
    format!(
        "thread {} {}: {state}; wchan {}; syscall {}; stack {}",
        task.file_name().unwrap_or_default().to_string_lossy(),
        read("comm").trim(),
        read("wchan").trim(),
        read("syscall").trim(),
        stack.join(" < "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_sleeping_process_is_described() {
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().expect("started");
        let lines = dump(child.id().cast_signed());
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains(": ") && lines[0].contains("wchan"), "{lines:?}");
        assert!(dump(-1).is_empty());
    }
}
