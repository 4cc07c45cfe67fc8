//! `steadfs completions`: what a shell offers when a command line is to be completed. Hidden: packages put its output in place.

use std::process::ExitCode;

use clap_complete::Shell;

/// Arguments of `steadfs completions`.
#[derive(Debug, Clone, clap::Args)]
pub struct CompletionsArgs {
    /// The shell.
    pub shell: Shell,
}

/// Prints the script for that shell.
pub fn run(args: &CompletionsArgs) -> ExitCode {
    use std::io::Write;
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "steadfs", &mut script);
    match std::io::stdout().write_all(&script) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            super::complain(&format!("cannot print: {error}"));
            ExitCode::from(1)
        }
    }
}
