//! A node that records what it is asked, and a control plane around it on a real socket.

use blkrep::control::node::Node;
use blkrep::control::{Control, ControlSocket, Judge, Limits, Served};
use blkrep::events::Events;
use blkrep::settings::Settings;
use blkrep::trust::{Trust, TrustPlan};
use blkrep_api::{
    ApiError, AttachReply, AttachRequest, BookmarkRequest, CommandReply, ConnectReply,
    ConnectRequest, DemoteRequest, DetachRequest, DisconnectReply, DisconnectRequest, ErrorCode,
    ForgetRequest, FrontendKind, GroupStatus, LinkRequest, MirrorRequest, NoteList, NoteQuery,
    NoteReply, PromoteRequest, ReplaceRequest, Role, SCHEMA, StatusQuery, TargetRequest,
    TaskRequest, TransmitRequest, VolumeState, VolumeStatus,
};
use blkrep_types::{ByteLen, Generation, GroupName, LinkName, NodeName, VolumeName};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;

/// Records requests. Volume `panic` panics, `slow` takes four seconds, `taken` is refused.
#[derive(Debug, Default)]
pub(crate) struct FakeNode {
    pub(crate) asked: Mutex<Vec<String>>,
}

impl FakeNode {
    fn note(&self, request: &impl std::fmt::Debug) -> CommandReply {
        self.asked.lock().unwrap().push(format!("{request:?}"));
        CommandReply::note("done")
    }
}

pub(crate) fn group_status(name: &GroupName) -> GroupStatus {
    GroupStatus {
        name: name.clone(),
        role: Role::Source,
        generation: Generation::from_bytes([7; 16]),
        volumes: vec![VolumeStatus {
            name: VolumeName::new("pgdata").unwrap(),
            device: "/dev/ublkb0".to_owned(),
            frontend: Some(FrontendKind::Ublk),
            backing: "/dev/sdb".to_owned(),
            size_bytes: ByteLen::new(1 << 30),
            state: VolumeState::Served,
            read_only: false,
            transient: false,
        }],
        links: Vec::new(),
        throttle: None,
        served_by: None,
        target: None,
        problems: Vec::new(),
    }
}

impl Node for FakeNode {
    fn status(&self, query: &StatusQuery) -> Result<Vec<GroupStatus>, ApiError> {
        let default = GroupName::new("db").unwrap();
        Ok(vec![group_status(query.group.as_ref().unwrap_or(&default))])
    }

    fn attach(&self, request: &AttachRequest) -> Result<AttachReply, ApiError> {
        match request.volume.as_str() {
            "panic" => panic!("asked to"),
            "slow" => std::thread::sleep(Duration::from_secs(4)),
            "taken" => {
                return Err(ApiError::new(
                    ErrorCode::VolumeExists,
                    "volume taken",
                    "it exists already",
                    "choose another name",
                ));
            }
            _ => {}
        }
        self.note(request);
        Ok(AttachReply {
            device: "/dev/ublkb0".to_owned(),
            frontend: FrontendKind::Ublk,
            notes: Vec::new(),
            size_bytes: ByteLen::new(4096),
        })
    }

    fn detach(&self, request: &DetachRequest) -> Result<CommandReply, ApiError> {
        Ok(self.note(request))
    }

    fn connect(&self, request: &ConnectRequest) -> Result<ConnectReply, ApiError> {
        self.note(request);
        let link = LinkName::new("east").unwrap();
        let notes = Vec::new();
        Ok(ConnectReply { link, notes })
    }

    fn disconnect(&self, request: &DisconnectRequest) -> Result<DisconnectReply, ApiError> {
        self.note(request);
        Ok(DisconnectReply {
            links: Vec::new(),
            tracking: true,
        })
    }

    fn forget(&self, request: &ForgetRequest) -> Result<CommandReply, ApiError> {
        Ok(self.note(request))
    }

    fn change_link(&self, request: &LinkRequest) -> Result<CommandReply, ApiError> {
        Ok(self.note(request))
    }

    fn mirror(&self, request: &MirrorRequest) -> Result<CommandReply, ApiError> {
        Ok(self.note(request))
    }

    fn submit_task(&self, request: &TaskRequest) -> Result<NoteReply, ApiError> {
        self.note(request);
        Err(ApiError::new(
            ErrorCode::NoSuchLink,
            "group db",
            "it has no link",
            "connect it first",
        ))
    }

    fn set_bookmark(&self, request: &BookmarkRequest) -> Result<NoteReply, ApiError> {
        self.note(request);
        Err(ApiError::new(
            ErrorCode::NoSuchLink,
            "group db",
            "it has no link",
            "connect it first",
        ))
    }

    fn notes(&self, query: &NoteQuery) -> Result<NoteList, ApiError> {
        self.note(query);
        Ok(NoteList {
            schema: SCHEMA,
            notes: Vec::new(),
        })
    }

    fn transmit(&self, request: &TransmitRequest) -> Result<CommandReply, ApiError> {
        Ok(self.note(request))
    }

    fn target(&self, request: &TargetRequest) -> Result<CommandReply, ApiError> {
        Ok(self.note(request))
    }

    fn replace(&self, request: &ReplaceRequest) -> Result<CommandReply, ApiError> {
        Ok(self.note(request))
    }

    fn promote(&self, request: &PromoteRequest) -> Result<CommandReply, ApiError> {
        Ok(self.note(request))
    }

    fn demote(&self, request: &DemoteRequest) -> Result<CommandReply, ApiError> {
        Ok(self.note(request))
    }

    fn settings_changed(&self, group: Option<&GroupName>) {
        self.note(&("settings", group));
    }

    fn stop(&self) {}
}

/// A running control plane; stops when dropped.
pub(crate) struct Plane {
    pub(crate) node: Arc<FakeNode>,
    pub(crate) events: Events,
    pub(crate) socket: PathBuf,
    _dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Plane {
    pub(crate) fn start(judge: impl Judge) -> Self {
        let limits = Limits {
            connections: 8,
            request_timeout: Duration::from_millis(700),
            operation_timeout: Duration::from_secs(3),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let (socket, listener) = ControlSocket::bind(&path).unwrap();
        let node = Arc::new(FakeNode::default());
        let events = Events::in_memory(50);
        let control = Control::new(Served {
            name: NodeName::new("n1").unwrap(),
            listen: None,
            state_dir: dir.path().to_owned(),
            node: Arc::clone(&node) as Arc<dyn Node>,
            settings: Arc::new(Settings::defaults()),
            trust: Trust::open(TrustPlan {
                name: NodeName::new("n1").unwrap(),
                listen: "127.0.0.1:7420".parse().unwrap(),
                insecure_plain: false,
                state_dir: dir.path().to_owned(),
                events: events.clone(),
            })
            .unwrap(),
            events: events.clone(),
            judge: Arc::new(judge),
            limits,
        });
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            let stopped = async { drop(stopped.await) };
            runtime.block_on(control.run(listener, stopped)).unwrap();
            runtime.shutdown_background();
            drop(socket);
        });
        Self {
            node,
            events,
            socket: path,
            _dir: dir,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn get(&self, path: &str) -> (u16, serde_json::Value) {
        exchange(
            &self.socket,
            &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"),
        )
    }

    pub(crate) fn post(&self, path: &str, body: &serde_json::Value) -> (u16, serde_json::Value) {
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}",
            body.len()
        );
        exchange(&self.socket, &format!("{head}\r\n\r\n{body}"))
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.node.asked.lock().unwrap().clone()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

pub(crate) fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    let limit = Some(Duration::from_secs(20));
    stream.set_read_timeout(limit).unwrap();
    stream.set_write_timeout(limit).unwrap();
    stream
}

/// Sends bytes, returns all that comes back until the daemon closes.
pub(crate) fn raw(socket: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(socket);
    // A daemon that has seen enough may close before it read everything.
    let _ = stream.write_all(bytes);
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    reply
}

/// Sends a request, returns status and body.
pub(crate) fn exchange(socket: &Path, request: &str) -> (u16, serde_json::Value) {
    let reply = String::from_utf8(raw(socket, request.as_bytes())).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
    let status = head
        .split(' ')
        .nth(1)
        .map_or(0, |word| word.parse().unwrap());
    let json = serde_json::from_str(body).unwrap_or(serde_json::Value::Null);
    (status, json)
}
