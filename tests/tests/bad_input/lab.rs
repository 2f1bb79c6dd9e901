//! Daemons under test and their command line.
//!
//! Owns the directory of a test and the processes in it; both end with their values. Commands enter, what was said
//! leaves. Every wait is bounded. Never looks into a daemon's files: tests that damage them do that themselves.

use serde_json::Value;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// No single wait of a test is longer, on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);
pub(crate) const MIB: u64 = 1 << 20;

/// Short times, so that tests wait for nothing longer than they must; the smallest journal and log.
const CONFIG: &str = "[link]\nheartbeat-interval = '100ms'\nheartbeat-timeout = '10s'\n\
                      reconnect-interval = '100ms'\n[group]\nlog-memory = '4MiB'\n\
                      [target]\njournal-size = '16MiB'\n";

/// `blkctl`, with `blkrepd` beside it: built by the cargo that runs this test, in its profile, so that what is tested
/// is what is in the tree.
fn blkctl() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let line = "build --profile test --bins -p blkrep -p blkctl -p blkrep-tests \
                    --message-format=json-render-diagnostics";
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(line.split_whitespace())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(built.status.success(), "the product does not build");
        let lines = built.stdout.split(|byte| *byte == b'\n');
        let mut programs = lines
            .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
            .filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)));
        let found = programs.find(|path| path.file_name().is_some_and(|name| name == "blkctl"));
        let found = found.expect("cargo names what it built");
        assert!(found.with_file_name("blkrepd").is_file());
        found
    })
}

/// Looks again and again until there is something to see.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until two files hold the same bytes: what a target has durably in its journal is in its base a moment later.
pub(crate) fn same(one: &Path, other: &Path) {
    let what = format!("{} and {} are the same", one.display(), other.display());
    until(&what, || {
        (std::fs::read(one).unwrap() == std::fs::read(other).unwrap()).then_some(())
    });
}

/// A directory with a short name on a disk: sockets have little room for a name, and memory may not take direct I/O.
pub(crate) struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of `len` bytes that name their own place, and `seed`.
    pub(crate) fn file(&self, name: &str, len: u64, seed: u8) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = File::create(&path).unwrap();
        for at in (0..len).step_by(usize::try_from(MIB).unwrap()) {
            let count = MIB.min(len - at);
            let bytes: Vec<u8> = (at..at + count).map(|place| pattern(place, seed)).collect();
            file.write_all_at(&bytes, at).unwrap();
        }
        path
    }

    /// A node whose replicas go to its own directory `replicas`.
    pub(crate) fn node(&self, name: &str) -> Node {
        let mut node = self.plan(name);
        node.start();
        node
    }

    /// A node that is not started yet.
    pub(crate) fn plan(&self, name: &str) -> Node {
        let dir = self.path(name);
        std::fs::create_dir_all(dir.join("replicas")).unwrap();
        Node {
            replicas: dir.join("replicas"),
            state: dir.join("state"),
            dir,
            name: name.to_owned(),
            wrapped: Vec::new(),
            config: CONFIG.to_owned(),
            address: "127.0.0.1:0".to_owned(),
            child: None,
            log: Arc::default(),
        }
    }
}

/// What a file of [`Lab::file`] has at a place.
pub(crate) fn pattern(place: u64, seed: u8) -> u8 {
    let mixed = (place / 512).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ place;
    mixed.to_le_bytes()[0] ^ mixed.to_le_bytes()[5] ^ seed
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a program, which must end in time.
pub(crate) fn run(mut command: Command) -> Ran {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let id = child.id();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || std::io::read_to_string(&mut err).unwrap());
    let (told, ended) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        if ended.recv_timeout(2 * LIMIT).is_err() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(id).unwrap());
            // It may have ended just now.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        }
    });
    let stdout = std::io::read_to_string(&mut out).unwrap();
    let status = child.wait().unwrap();
    told.send(()).unwrap();
    guard.join().unwrap();
    Ran {
        code: status.code(),
        stdout,
        stderr: reader.join().unwrap(),
    }
}

/// A line of `blkctl` for a socket.
pub(crate) fn ctl(socket: &Path, line: &str) -> Command {
    let mut command = Command::new(blkctl());
    command
        .arg("--socket")
        .arg(socket)
        .args(line.split_whitespace())
        .env_remove("BLKREP_SOCKET");
    command
}

/// A daemon, running or not.
pub(crate) struct Node {
    pub(crate) dir: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) replicas: PathBuf,
    pub(crate) name: String,
    /// Words before the daemon's own: it runs under another program.
    pub(crate) wrapped: Vec<OsString>,
    pub(crate) config: String,
    pub(crate) address: String,
    child: Option<Child>,
    log: Arc<Mutex<String>>,
}

impl Node {
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("s")
    }

    /// The daemon's command line.
    pub(crate) fn command(&self) -> Command {
        let config = self.dir.join("blkrepd.toml");
        std::fs::write(&config, &self.config).unwrap();
        let daemon = blkctl().with_file_name("blkrepd");
        let mut command = match self.wrapped.split_first() {
            None => Command::new(daemon),
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(daemon);
                command
            }
        };
        command.arg("--config").arg(config);
        command.arg("--state").arg(&self.state);
        command.arg("--socket").arg(self.socket());
        command.args(["--listen", &self.address, "--node", &self.name]);
        command.arg("--allow-replica-dir").arg(&self.replicas);
        command
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM");
        command
    }

    /// Starts it and waits until it answers; keeps its address over restarts.
    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "one process at a time");
        let mut command = self.command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        self.child = Some(child);
        let (told, ready) = std::sync::mpsc::channel();
        let log = Arc::clone(&self.log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some((_, address)) = line.split_once("listening on ") {
                    // Nobody waits any more if it was too late.
                    let _ = told.send(address.to_owned());
                }
                let mut log = log.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        match ready.recv_timeout(LIMIT) {
            Ok(address) => self.address = address,
            Err(_) => panic!("{} does not start: {}", self.name, self.log()),
        }
    }

    /// A start that must be refused; what it says.
    pub(crate) fn refused_start(&self) -> String {
        let ran = run(self.command());
        assert_eq!(ran.code, Some(2), "{ran:?}");
        let mut lines = ran.stderr.lines();
        assert!(
            lines.any(|line| line.starts_with("blkrepd: ")),
            "{}",
            ran.stderr
        );
        ran.stderr
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Fails if it has ended by itself.
    pub(crate) fn alive(&mut self) {
        let child = self.child.as_mut().expect("it was started");
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "{} ended: {}", self.name, self.log());
    }

    fn signal(&mut self, signal: nix::sys::signal::Signal) -> Option<i32> {
        self.alive();
        let mut child = self.child.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        until("the daemon ends", || child.try_wait().unwrap()).code()
    }

    /// An orderly stop.
    pub(crate) fn stop(&mut self) {
        let code = self.signal(nix::sys::signal::SIGTERM);
        assert_eq!(code, Some(0), "{}", self.log());
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.signal(nix::sys::signal::SIGKILL);
    }

    /// Waits for the end of one that somebody else has killed.
    pub(crate) fn reap(&mut self) {
        self.child.take().expect("it was started").wait().unwrap();
    }

    /// Runs a command, whatever comes of it.
    pub(crate) fn ctl(&self, line: &str) -> Ran {
        run(ctl(&self.socket(), line))
    }

    /// Runs a command that must succeed; its data.
    pub(crate) fn ok(&self, line: &str) -> String {
        let ran = self.ctl(line);
        assert_eq!(ran.code, Some(0), "`{line}`: {ran:?}\n{}", self.log());
        ran.stdout
    }

    /// Runs a command that must be refused with this code, with what happened, to what, and what to do; the words a
    /// person sees.
    pub(crate) fn no(&mut self, line: &str, code: &str) -> String {
        let json = self.ctl(&format!("{line} --json"));
        assert_eq!(json.code, Some(2), "`{line}`: {json:?}");
        let body: Value = serde_json::from_str(&json.stdout).unwrap();
        assert_eq!(body["error"]["code"], code, "`{line}`: {body}");
        for part in ["happened", "subject", "action"] {
            let words = body["error"][part].as_str().unwrap();
            assert!(
                !words.trim().is_empty(),
                "`{line}` does not say {part}: {body}"
            );
        }
        self.alive();
        json.stderr
    }

    pub(crate) fn attach(&self, volume: &str, backing: &Path, options: &str) -> String {
        let backing = backing.display();
        let line = format!("attach {volume} --backing {backing} --frontend nbd {options}");
        self.ok(&line).trim().to_owned()
    }

    /// The status of one group, if there is such a group.
    pub(crate) fn group(&self, group: &str) -> Option<Value> {
        let ran = self.ctl("status --json");
        assert!(matches!(ran.code, Some(0 | 1)), "{ran:?}\n{}", self.log());
        let mut status: Value = serde_json::from_str(&ran.stdout).unwrap();
        let groups = status["groups"].as_array_mut().unwrap();
        let at = groups.iter().position(|found| found["name"] == group)?;
        Some(groups.swap_remove(at))
    }

    /// Waits until the one link of a group is as asked for.
    pub(crate) fn link(&self, group: &str, what: &str, as_asked: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        until(&format!("{what}; see the daemon's log"), || {
            last = self.group(group)?["links"][0].clone();
            as_asked(&last).then(|| last.clone())
        })
    }

    /// Waits until the replica at the other end is equal.
    pub(crate) fn equal(&self, group: &str) -> Value {
        self.link(group, "the replica is equal", |link| {
            link["replication"] == "replicating"
                && link["data_state"] == "ok"
                && link["mirror"]["state"] == "idle"
                && link["dirty_bytes"] == 0
                && link["queue"]["ops"] == 0
        })
    }

    /// Waits for an event of this name with these words; all of it.
    pub(crate) fn event(&self, name: &str, words: &str) -> Value {
        until(&format!("event {name} with '{words}'"), || {
            let page: Value = serde_json::from_str(&self.ok("events --json --limit 500")).unwrap();
            let events = page["events"].as_array().unwrap().clone();
            events.into_iter().find(|event| {
                event["name"] == name && event["text"].as_str().unwrap().contains(words)
            })
        })
    }
}

/// Removes the memory that outlives a daemon, as a restart of the host does; how many pieces there were.
pub(crate) fn forget_memory(state: &Path) -> usize {
    forget(memory_of(state))
}

/// How the names of a daemon's memory begin.
fn memory_of(state: &Path) -> Option<String> {
    let about = std::fs::metadata(state).ok()?;
    Some(format!("blkrep-{:x}-{:x}-", about.dev(), about.ino()))
}

fn forget(prefix: Option<String>) -> usize {
    let Some(prefix) = prefix else { return 0 };
    let entries = std::fs::read_dir("/dev/shm").unwrap().map_while(Result::ok);
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    ours.filter(|entry| std::fs::remove_file(entry.path()).is_ok())
        .count()
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // As the daemon sees it: the directory may be on a disk that only it has mounted.
            let root = PathBuf::from(format!("/proc/{}/root", child.id()));
            let state = root.join(self.state.strip_prefix("/").unwrap());
            let prefix = memory_of(&state);
            let _ = child.kill();
            let _ = child.wait();
            forget(prefix);
        } else {
            forget_memory(&self.state);
        }
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "--- {}:\n{}", self.name, self.log());
        }
    }
}
