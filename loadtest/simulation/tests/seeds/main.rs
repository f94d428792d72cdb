//! Many seeds, each a ward for ten minutes under faults: no law may break.
//!
//! `WARDBELL_SEED=n` runs that seed alone and tells what happened in it; `WARDBELL_SEEDS=n` runs so many, from
//! `WARDBELL_FIRST_SEED` on; `WARDBELL_WITHOUT=safeguard` takes a safeguard away.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use wardbell_connectors::runtime::fault::POINTS;

mod safeguards;
mod simulation;
mod sinks;

use safeguards::{SAFEGUARDS, Safeguard};
use simulation::{Outcome, simulate};

/// As in the binary; a run allocates a lot.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Seeds of an ordinary run of the tests.
const SEEDS: u64 = 1_000;
/// Each fault point is reached at least so often in them, and something happens there at least so often.
const REACHED_MIN: u64 = 100;
const HAPPENED_MIN: u64 = 100;
const FIRST_SEED: u64 = 1;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

fn without() -> Option<&'static str> {
    let name = std::env::var("WARDBELL_WITHOUT").ok()?;
    let known = SAFEGUARDS.iter().find(|safeguard| safeguard.name == name);
    Some(known.unwrap_or_else(|| panic!("no safeguard is called `{name}`")).name)
}

fn print(outcome: &Outcome) {
    println!(
        "seed {}: {} records, {} transitions, {} deliveries, {} turns, {}",
        outcome.seed, outcome.records, outcome.transitions, outcome.deliveries, outcome.switches, outcome.digest
    );
    for fault in &outcome.faults {
        println!("  {fault}");
    }
    for violation in outcome.violations.iter().take(20) {
        println!("  BROKEN: {violation}");
    }
}

/// Runs seeds on all processors and hands each outcome over.
fn over(seeds: impl Iterator<Item = u64>, removed: Option<&'static str>, each: impl FnMut(Outcome) + Send) {
    let seeds: Vec<u64> = seeds.collect();
    let (next, each) = (AtomicU64::new(0), Mutex::new(each));
    // One more than processors: who hands its turn over leaves one idle for a moment.
    let workers = std::thread::available_parallelism().map_or(2, usize::from) + 1;
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::SeqCst) as usize) {
                    let outcome = simulate(*seed, removed);
                    each.lock().unwrap_or_else(PoisonError::into_inner)(outcome);
                }
            });
        }
    });
}

#[test]
fn no_law_breaks_whatever_fails() {
    if let Some(seed) = from_environment("WARDBELL_SEED") {
        let outcome = simulate(seed, without());
        print(&outcome);
        assert!(outcome.violations.is_empty(), "seed {seed} breaks a law");
        return;
    }
    let n = from_environment("WARDBELL_SEEDS").unwrap_or(SEEDS);
    let first = from_environment("WARDBELL_FIRST_SEED").unwrap_or(FIRST_SEED);
    let (mut reached, mut happened) = (BTreeMap::<&str, u64>::new(), BTreeMap::<&str, u64>::new());
    let (mut records, mut transitions, mut deliveries, mut turns) = (0, 0, 0, 0);
    let mut broken = Vec::new();
    over(first..first + n, without(), |outcome| {
        for (point, times) in &outcome.reached {
            *reached.entry(point).or_default() += times;
        }
        for (point, times) in &outcome.happened {
            *happened.entry(point).or_default() += times;
        }
        records += outcome.records;
        transitions += outcome.transitions;
        deliveries += outcome.deliveries;
        turns += outcome.switches;
        if !outcome.violations.is_empty() {
            print(&outcome);
            broken.push(outcome.seed);
        }
    });
    println!(
        "{n} seeds from {first}: {records} records, {transitions} transitions, {deliveries} deliveries, {turns} turns"
    );
    println!("{:<16} {:>10} {:>10}", "fault point", "reached", "faults");
    for point in POINTS {
        let times = |of: &BTreeMap<&str, u64>| of.get(point).copied().unwrap_or(0);
        println!("{point:<16} {:>10} {:>10}", times(&reached), times(&happened));
    }
    broken.sort_unstable();
    assert!(broken.is_empty(), "{} of {n} seeds break a law: {broken:?}", broken.len());
    if n >= SEEDS {
        for point in POINTS {
            let times = |of: &BTreeMap<&str, u64>| of.get(point).copied().unwrap_or(0);
            assert!(times(&reached) >= REACHED_MIN, "{point} was reached {} times only", times(&reached));
            assert!(times(&happened) >= HAPPENED_MIN, "{} faults only at {point}", times(&happened));
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 2, 3] {
        let (one, other) = (simulate(seed, None), simulate(seed, None));
        assert_eq!((one.digest, one.faults), (other.digest, other.faults), "seed {seed}");
    }
}

#[test]
fn each_safeguard_matters() {
    for safeguard in SAFEGUARDS {
        let without = simulate(safeguard.seed, Some(safeguard.name));
        let broken = without.violations.iter().any(|what| what.starts_with(&format!("{}: ", safeguard.law)));
        let Safeguard { name, law, seed } = safeguard;
        assert!(broken, "seed {seed} does not break `{law}` without `{name}`: {:?}", without.violations);
        println!("without {}, seed {}: {}", safeguard.name, safeguard.seed, without.violations[0]);
        let with = simulate(safeguard.seed, None);
        assert!(with.violations.is_empty(), "seed {} breaks a law with everything in place", safeguard.seed);
    }
}
