//! What the kernel allows this process to have.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the number of descriptors to what is allowed. Each open file of the overlay costs one, and those of a dead
/// generation are closed later than those of the next are opened; 1024 is the usual limit if nobody asks for more.
pub fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(1000), hard).expect("lowered");
        raise_descriptors();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((hard, hard)));
    }
}
