//! SIGINT and SIGTERM: the first asks for an early end, after which all that was done is reported as usual, the second
//! ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{process, thread};

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a shell says of a process that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// Set once a signal has come.
///
/// # Errors
/// If signals cannot be caught.
pub fn catch_signals() -> Result<Arc<AtomicBool>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting the runtime for signals")?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        let caught = |kind: SignalKind| signal(kind).context("catching signals");
        (caught(SignalKind::interrupt())?, caught(SignalKind::terminate())?)
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    thread::spawn(move || {
        runtime.block_on(async move {
            either(&mut interrupt, &mut terminate).await;
            flag.store(true, Ordering::Relaxed);
            eprintln!("nothing more is sent; a second signal ends this at once");
            either(&mut interrupt, &mut terminate).await;
            process::exit(INTERRUPTED);
        });
    });
    Ok(interrupted)
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
