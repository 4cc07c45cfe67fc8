//! The command line of a process that stays, without what `-o` said: everybody can read it in `/proc/PID/cmdline`, and a
//! hook's command may have a password in it.

/// Takes the values of `-o` off this process's command line, as others see it. Must be called while it has one thread, and
/// after its arguments have been read.
pub fn hide_options() {
    let Some((start, end)) = place() else { return };
    let Ok(line) = std::fs::read("/proc/self/cmdline") else { return };
    if line.len() != end - start || line.last() != Some(&0) {
        return;
    }
    let words: Vec<&[u8]> = line[..line.len() - 1].split(|&byte| byte == 0).collect();
    let mut kept = without_options(&words).join(&0);
    kept.resize(line.len(), 0);
    // SAFETY: the kernel put the arguments of this process there, which are its to change (proc_pid_stat(5), arg_start);
    // they are as long as what was read from there, and nobody else has a thread that could read them.
    unsafe { std::ptr::copy_nonoverlapping(kept.as_ptr(), std::ptr::with_exposed_provenance_mut(start), kept.len()) };
}

/// Where the arguments lie.
fn place() -> Option<(usize, usize)> {
    let stat = String::from_utf8_lossy(&std::fs::read("/proc/self/stat").ok()?).into_owned();
    // Fields 48 and 49; the first two end with the name in brackets.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(45);
    let (start, end) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    (start > 0 && start < end).then_some((start, end))
}

/// The words of `steadfs mount` but `-o` and what belongs to it.
fn without_options(words: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut kept = Vec::new();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        if *word == b"--" {
            kept.push(word.to_vec());
            kept.extend(rest.by_ref().map(|word| word.to_vec()));
            break;
        }
        if !word.starts_with(b"-") || word.starts_with(b"--") {
            kept.push(word.to_vec());
            continue;
        }
        // As clap does: switches may share a word, and the first that takes a value ends it.
        match word.iter().skip(1).position(|letter| matches!(letter, b'o' | b'p' | b'F')).map(|at| at + 1) {
            Some(at) if word[at] == b'o' => {
                if at + 1 == word.len() {
                    rest.next();
                }
                if at > 1 {
                    kept.push(word[..at].to_vec());
                }
            }
            Some(at) if at + 1 == word.len() => {
                kept.push(word.to_vec());
                kept.extend(rest.next().map(|value| value.to_vec()));
            }
            _ => kept.push(word.to_vec()),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(line: &str) -> String {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        String::from_utf8(without_options(&words).join(&b' ')).expect("text")
    }

    #[test]
    fn options_go_and_the_rest_stays() {
        assert_eq!(kept("steadfs mount -o a=SECRET,b h:d /hot -f"), "steadfs mount h:d /hot -f");
        assert_eq!(kept("steadfs mount -oSECRET -fo SECRET -sfoSECRET h: /m"), "steadfs mount -f -sf h: /m");
        assert_eq!(
            kept("steadfs mount -p 23 -F /c -p23 -F/co -C h: /m"),
            "steadfs mount -p 23 -F /c -p23 -F/co -C h: /m"
        );
        assert_eq!(kept("steadfs mount -o x -- -o /m"), "steadfs mount -- -o /m");
        assert_eq!(kept("steadfs mount h: /m -o"), "steadfs mount h: /m");
    }

    #[test]
    fn the_place_of_the_arguments_is_known() {
        let (start, end) = place().expect("it is found");
        assert_eq!(end - start, std::fs::read("/proc/self/cmdline").expect("proc").len());
    }
}
