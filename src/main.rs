//! The `steadfs` command: parses the command line and hands over to the library.

/// A request must not be lost with the thread that reads it.
#[global_allocator]
static ALLOCATOR: steadfs::allocator::Allocator = steadfs::allocator::Allocator;

fn main() -> std::process::ExitCode {
    steadfs::cli::main()
}
