//! The `wardbell` binary; everything is in the library, so that tests and the load test run the same code.

use std::process::ExitCode;

/// A partition keeps many small buffers; this allocator keeps them closer together than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    wardbell::cli::main()
}
