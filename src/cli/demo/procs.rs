//! Finds processes by descent, so that nothing but what the demo started is ever signalled.

/// A process as /proc shows it (proc_pid_stat(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proc {
    /// Its id.
    pub pid: i32,
    /// Its parent's id.
    pub parent: i32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// R, S, D, T, Z and their like.
    pub state: char,
}

/// All processes of this machine that can be read.
pub fn all() -> Vec<Proc> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .filter_map(|entry| parse(&std::fs::read_to_string(entry.path().join("stat")).ok()?))
        .collect()
}

/// Those of `all` that descend from `root`, without it.
pub fn descendants(all: &[Proc], root: i32) -> Vec<Proc> {
    let mut family = vec![root];
    let mut found = Vec::new();
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        next += 1;
        for child in all.iter().filter(|p| p.parent == parent && !family.contains(&p.pid)).collect::<Vec<_>>() {
            family.push(child.pid);
            found.push(child.clone());
        }
    }
    found
}

fn parse(stat: &str) -> Option<Proc> {
    // The name may hold anything, parentheses included: it ends at the last one.
    let (head, tail) = stat.rsplit_once(')')?;
    let (pid, name) = head.split_once(" (")?;
    let mut fields = tail.split_ascii_whitespace();
    Some(Proc {
        pid: pid.parse().ok()?,
        name: name.to_string(),
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_are_parsed() {
        let found = parse("42 (a) R (b)) S 7 42 42 0 -1");
        assert_eq!(found, Some(Proc { pid: 42, parent: 7, name: "a) R (b)".into(), state: 'S' }));
    }

    #[test]
    fn only_descendants_are_found() {
        let proc = |pid, parent| Proc { pid, parent, name: String::new(), state: 'S' };
        let all = [proc(1, 0), proc(10, 1), proc(11, 10), proc(12, 11), proc(20, 1)];
        let pids: Vec<i32> = descendants(&all, 10).iter().map(|p| p.pid).collect();
        assert_eq!(pids, [11, 12]);
    }

    #[test]
    fn this_process_is_among_all() {
        let me = std::process::id() as i32;
        assert!(all().iter().any(|p| p.pid == me));
    }
}
