//! Tasks of replicas as processes of this host.
//!
//! Owns what may be run, the process of each replica's one task, its time-out and the end of its output. A
//! task enters when its place is reached; how it ended leaves. Each has a thread of its own: nothing
//! waits for a process but that. Never touches a replica.

use crate::engine::target::{TaskDone, TaskEnd, TaskOrder};
use crate::settings::{GroupSettings, Settings};
use blkrep_types::{GroupName, NoteId, NoteState};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{self, PipeReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often a process that runs is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// What a process group gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// How long the kernel gets to end what was killed; what it cannot end is left behind.
const REAP: Duration = Duration::from_secs(5);
/// The end of the output that is kept: as much as a report has room for.
const OUTPUT_KEPT: usize = 2048;
/// What is found by name in there: nothing of the daemon's own surroundings.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The tasks that run here.
#[derive(Debug)]
pub(super) struct Tasks {
    settings: Arc<Settings>,
    running: Mutex<BTreeMap<(GroupName, NoteId), Running>>,
}

#[derive(Debug)]
struct Running {
    cancelled: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tasks {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings,
            running: Mutex::default(),
        }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<(GroupName, NoteId), Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether this node runs a task.
    pub(super) fn admits(&self, group: &GroupName, order: &TaskOrder) -> Result<(), String> {
        program(&self.settings.group(group), order).map(drop)
    }

    /// Runs a task in a thread of its own.
    pub(super) fn run(self: &Arc<Self>, group: &GroupName, order: TaskOrder, done: TaskDone) {
        let settings = self.settings.group(group);
        let cancelled = Arc::new(AtomicBool::new(false));
        let (tasks, name, stop) = (Arc::clone(self), group.clone(), Arc::clone(&cancelled));
        let id = order.id;
        let mut running = self.running();
        // Whoever can tell the end has it: the thread, or we if there is none.
        let done = Arc::new(Mutex::new(Some(done)));
        let told = Arc::clone(&done);
        let thread = thread::Builder::new()
            .name(format!("task-{group}"))
            .spawn(move || {
                let end = perform(&settings, &name, &order, &stop);
                tasks.running().remove(&(name, id));
                tell(&told, end);
            });
        match thread {
            Ok(thread) => {
                let thread = Some(thread);
                running.insert((group.clone(), id), Running { cancelled, thread });
            }
            Err(error) => tell(&done, failed(format!("start a thread for it: {error}"))),
        }
    }

    /// Kills a task.
    pub(super) fn cancel(&self, group: &GroupName, task: NoteId) {
        if let Some(running) = self.running().get(&(group.clone(), task)) {
            running.cancelled.store(true, Ordering::Release);
        }
    }

    /// Kills every task and waits until they are gone.
    pub(super) fn end(&self) {
        let threads: Vec<_> = {
            let mut running = self.running();
            let all = running.values_mut();
            all.filter_map(|task| {
                task.cancelled.store(true, Ordering::Release);
                task.thread.take()
            })
            .collect()
        };
        for thread in threads {
            // It may have panicked: then there is nothing to wait for.
            let _ = thread.join();
        }
    }
}

fn tell(done: &Mutex<Option<TaskDone>>, end: TaskEnd) {
    let done = done.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(done) = done {
        done(end);
    }
}

/// The program of a task, if it is allowed.
fn program(settings: &GroupSettings, order: &TaskOrder) -> Result<PathBuf, String> {
    let Some(directory) = &settings.task_directory else {
        return Err(
            "tasks are off at this target: blkctl set task.directory=DIR there, with the programs that \
             may be run in it"
                .to_owned(),
        );
    };
    let path = directory.join(&order.command.words()[0]);
    check_safe(directory, true)?;
    check_safe(&path, false)?;
    Ok(path)
}

/// Only root, or whoever runs the daemon, may decide what it runs.
fn check_safe(path: &Path, directory: bool) -> Result<(), String> {
    let shown = path.display();
    let found = fs::metadata(path).map_err(|error| format!("{shown}: {error}"))?;
    if directory && !found.is_dir() {
        return Err(format!("{shown} is not a directory"));
    }
    let runs = found.is_file() && found.permissions().mode() & 0o111 != 0;
    if !(directory || runs) {
        return Err(format!("{shown} is not an executable file: chmod +x it"));
    }
    let me = nix::unistd::geteuid().as_raw();
    let others = found.permissions().mode() & 0o022 != 0 || ![0, me].contains(&found.uid());
    if others {
        return Err(format!(
            "{shown} can be changed by others than root: chown root, chmod go-w"
        ));
    }
    Ok(())
}

fn failed(why: String) -> TaskEnd {
    TaskEnd {
        state: NoteState::Failed,
        exit: None,
        output: why,
    }
}

/// Runs a task to its end.
fn perform(
    settings: &GroupSettings,
    group: &GroupName,
    order: &TaskOrder,
    cancelled: &AtomicBool,
) -> TaskEnd {
    let path = match program(settings, order) {
        Ok(path) => path,
        Err(why) => return failed(why),
    };
    let (child, output) = match start(&path, group, order) {
        Ok(started) => started,
        Err(error) => return failed(format!("{}: {error}", path.display())),
    };
    let tail = Arc::new(Mutex::new(VecDeque::new()));
    let kept = Arc::clone(&tail);
    // It ends when the last writer of the pipe is gone, and holds nothing else.
    let reader = thread::Builder::new().name(format!("task-{group}-out"));
    let reader = reader.spawn(move || drain(output, &kept));
    let (status, timed_out) = watch(child, settings.task_timeout, cancelled);
    if let Ok(reader) = reader {
        let until = Instant::now() + Duration::from_secs(1);
        while !reader.is_finished() && Instant::now() < until {
            thread::sleep(LOOK);
        }
    }
    let bytes: Vec<u8> = {
        let tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.iter().copied().collect()
    };
    let output = String::from_utf8_lossy(&bytes).into_owned();
    judge(status, timed_out, settings.task_timeout, output)
}

fn judge(status: Option<ExitStatus>, timed_out: bool, limit: Duration, output: String) -> TaskEnd {
    let exit = status.and_then(|status| status.code());
    let exit = exit.and_then(|code| u8::try_from(code).ok());
    let signal = status.and_then(|status| status.signal());
    let (state, why) = match (exit, signal) {
        _ if timed_out => {
            let why = format!("killed: it had not ended after {} s", limit.as_secs());
            (NoteState::TimedOut, why)
        }
        (Some(0), _) => (NoteState::Done, String::new()),
        (Some(_), _) => (NoteState::Failed, String::new()),
        (None, Some(signal)) => (NoteState::Failed, format!("killed by signal {signal}")),
        (None, None) => (NoteState::Failed, "its end is not known".to_owned()),
    };
    let output = match (why.is_empty(), output.is_empty()) {
        (true, _) => output,
        (false, true) => why,
        (false, false) => format!("{why}\n{output}"),
    };
    let exit = exit.filter(|_| !timed_out);
    TaskEnd {
        state,
        exit,
        output,
    }
}

/// Starts the process: no shell, no input, nothing of the daemon's environment, a process group of its own.
fn start(path: &Path, group: &GroupName, order: &TaskOrder) -> io::Result<(Child, PipeReader)> {
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(path);
    command
        .args(&order.command.words()[1..])
        .current_dir("/")
        .env_clear()
        .env("PATH", PATH)
        .env("LANG", "C.UTF-8")
        .env("BLKREP_GROUP", group.as_str())
        .env("BLKREP_SOURCE", order.source.as_str())
        .env("BLKREP_TASK", order.id.to_string())
        .env("BLKREP_DESCRIPTION", order.command.description())
        .env("BLKREP_GENERATION", order.name.generation.to_string())
        .env("BLKREP_RUN", order.name.incarnation.get().to_string())
        .env("BLKREP_SEQ", order.name.seq.to_string())
        .env("BLKREP_VOLUMES", order.bases.len().to_string())
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    for (index, base) in order.bases.iter().enumerate() {
        command.env(format!("BLKREP_BASE_{index}"), base);
    }
    Ok((command.spawn()?, reader))
}

/// Reads everything, so that the process never waits for us, and keeps the end.
fn drain(mut output: PipeReader, kept: &Mutex<VecDeque<u8>>) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = output.read(&mut bytes) {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(&bytes[..count]);
        let over = kept.len().saturating_sub(OUTPUT_KEPT);
        kept.drain(..over);
    }
}

/// Waits for the end of a process, kills its group if it is late or is to end; what it left behind in its
/// group is killed in any case, so that nothing of it goes on reading. True if it was late.
fn watch(mut child: Child, limit: Duration, cancelled: &AtomicBool) -> (Option<ExitStatus>, bool) {
    let group = Pid::from_raw(i32::try_from(child.id()).expect("a process id is one"));
    let end = Instant::now() + limit;
    let mut late = false;
    let mut asked: Option<Instant> = None;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                // The number is the group's as long as one of it lives: nobody else has it.
                let _ = killpg(group, Signal::SIGKILL);
                return (Some(status), late);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "wait for a task");
                return (None, late);
            }
        }
        let now = Instant::now();
        match asked {
            None if now >= end || cancelled.load(Ordering::Acquire) => {
                late = now >= end;
                asked = Some(now);
                let _ = killpg(group, Signal::SIGTERM);
            }
            Some(at) if now >= at + GRACE + REAP => return (None, late),
            Some(at) if now >= at + GRACE => {
                let _ = killpg(group, Signal::SIGKILL);
            }
            Some(_) | None => {}
        }
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use blkrep_types::{NodeName, TaskCommand, WriteName};

    fn directory(script: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("job");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        directory
    }

    fn order(words: &[&str]) -> TaskOrder {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        TaskOrder {
            id: NoteId::from_bytes([1; 16]),
            name: WriteName::NONE,
            source: NodeName::new("north").unwrap(),
            submitted: 1,
            command: TaskCommand::new(words, "why".to_owned()).unwrap(),
            bases: vec![PathBuf::from("/dev/base")],
        }
    }

    fn settings(directory: &Path, timeout: Duration) -> GroupSettings {
        let mut settings = Settings::defaults().any_group();
        settings.task_directory = Some(directory.to_owned());
        settings.task_timeout = timeout;
        settings
    }

    fn run(script: &str, words: &[&str], timeout: Duration) -> TaskEnd {
        let directory = directory(script);
        let settings = settings(directory.path(), timeout);
        let group = GroupName::new("db").unwrap();
        perform(&settings, &group, &order(words), &AtomicBool::new(false))
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_task_gets_its_words_as_they_are_and_a_clean_environment() {
        // The shell of the test must not be the one that takes words apart: the script prints them.
        let script = r#"printf '<%s>' "$@"; env | sort | cut -d= -f1 | tr '\n' ' '; echo "$BLKREP_GROUP $BLKREP_BASE_0""#;
        let end = run(script, &["job", "a b", "$HOME; ls", "*"], LONG);
        assert_eq!((end.state, end.exit), (NoteState::Done, Some(0)));
        assert!(
            end.output
                .starts_with("<a b><$HOME; ls><*>BLKREP_BASE_0 BLKREP_DESCRIPTION")
        );
        assert!(end.output.ends_with("db /dev/base\n"), "{}", end.output);
        assert!(!end.output.contains("CARGO") && !end.output.contains("HOME="));
    }

    #[test]
    fn an_exit_status_a_signal_and_the_end_of_the_output_are_told() {
        let end = run("echo out; echo err >&2; exit 7", &["job"], LONG);
        assert_eq!((end.state, end.exit), (NoteState::Failed, Some(7)));
        assert_eq!(end.output, "out\nerr\n");
        let end = run("kill -9 $$", &["job"], LONG);
        assert_eq!((end.state, end.exit), (NoteState::Failed, None));
        assert_eq!(end.output, "killed by signal 9");
        let end = run("yes 0123456 | head -c 100000; echo last", &["job"], LONG);
        assert!(end.output.len() <= OUTPUT_KEPT && end.output.ends_with("last\n"));
    }

    #[test]
    fn what_is_late_is_killed_with_all_that_it_started() {
        let begun = Instant::now();
        let script = "sleep 300 & echo $!; exec sleep 300";
        let end = run(script, &["job"], Duration::from_secs(1));
        assert_eq!((end.state, end.exit), (NoteState::TimedOut, None));
        assert!(begun.elapsed() < Duration::from_secs(30), "{end:?}");
        let child: i32 = end.output.lines().nth(1).unwrap().trim().parse().unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        let alive = || {
            let state = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            !state.is_empty() && !state.contains(") Z ")
        };
        while alive() && Instant::now() < until {
            thread::sleep(LOOK);
        }
        assert!(!alive(), "the child of the task is gone too");
    }

    #[test]
    fn what_ignores_the_end_is_killed_for_good() {
        let end = run(
            "trap '' TERM; while :; do sleep 1; done",
            &["job"],
            Duration::from_secs(1),
        );
        assert_eq!(end.state, NoteState::TimedOut);
    }

    #[test]
    fn what_a_task_leaves_behind_does_not_outlive_it() {
        let end = run("sleep 300 & echo $!", &["job"], LONG);
        assert_eq!(end.state, NoteState::Done);
        let child = end.output.trim().to_owned();
        thread::sleep(Duration::from_millis(200));
        let state = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
    }

    #[test]
    fn only_what_its_administrators_put_there_is_run() {
        let place = directory("exit 0");
        let on = settings(place.path(), LONG);
        assert!(program(&on, &order(&["job"])).is_ok());
        let why = program(&on, &order(&["other"])).unwrap_err();
        assert!(why.contains("other"), "{why}");
        let job = place.path().join("job");
        fs::set_permissions(&job, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(
            program(&on, &order(&["job"]))
                .unwrap_err()
                .contains("chmod +x")
        );
        fs::set_permissions(&job, fs::Permissions::from_mode(0o757)).unwrap();
        assert!(
            program(&on, &order(&["job"]))
                .unwrap_err()
                .contains("others")
        );
        fs::set_permissions(&job, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(
            program(&on, &order(&["job"]))
                .unwrap_err()
                .contains("others")
        );
        let off = Settings::defaults().any_group();
        assert!(
            program(&off, &order(&["job"]))
                .unwrap_err()
                .contains("tasks are off")
        );
    }
}
