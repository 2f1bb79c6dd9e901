//! How far models are explored.

use loom::thread;

/// How often a thread may be interrupted where it could go on. What goes wrong between a few threads
/// goes wrong with few interruptions; each more costs several times as many runs.
const PREEMPTIONS: usize = 3;

/// Runs a model through its interleavings.
///
/// # Panics
/// If one of them breaks its promise, or leaves a thread waiting for ever.
pub(crate) fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(model);
}

/// The same for two threads, with each of them as the first. Loom leaves out interleavings that it
/// takes for equal by the last use of a word alone; what it leaves out depends on who is first.
pub(crate) fn explore_pair<A, B>(threads: impl Fn() -> (A, B) + Copy + Send + Sync + 'static)
where
    A: FnOnce() + 'static,
    B: FnOnce() + 'static,
{
    explore(move || {
        let (one, other) = threads();
        let other = thread::spawn(other);
        one();
        other.join().expect("a thread ends");
    });
    explore(move || {
        let (one, other) = threads();
        let one = thread::spawn(one);
        other();
        one.join().expect("a thread ends");
    });
}
