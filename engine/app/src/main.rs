//! The `wardbell` binary; everything is in the library, so that tests and the load test run the same code.

use std::process::ExitCode;

fn main() -> ExitCode {
    wardbell::cli::main()
}
