//! The commands: each turns arguments into a request and a reply into words.
//!
//! Owns the way from one to the other. Decides nothing about data: that is the daemon's.

mod change;
mod node;
mod note;
mod observe;
mod schedule;
mod setting;

use crate::Outcome;
use crate::args::{Arguments, Command};
use crate::client::Client;
use crate::output::Output;
use crate::reference;
use anyhow::bail;

/// What every command needs.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    pub(crate) client: Client,
    pub(crate) output: &'a Output,
    pub(crate) arguments: &'a Arguments,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> anyhow::Result<Outcome> {
    let global = &arguments.global;
    let waits = change::waits(&arguments.command);
    let reply_timeout = if waits { None } else { global.timeout };
    let session = Session {
        client: Client::new(&global.socket, reply_timeout)?
            .for_node(global.node.clone(), global.address),
        output,
        arguments,
    };
    match &arguments.command {
        Command::Attach(attach) => session.attach(attach),
        Command::Detach(detach) => session.detach(detach),
        Command::Connect(connect) => session.connect(connect),
        Command::Disconnect(disconnect) => session.disconnect(disconnect),
        Command::Mirror(mirror) => session.mirror(mirror),
        Command::Link(link) => session.link(link),
        Command::Transmit(transmit) => session.transmit(transmit),
        Command::Target(target) => session.target(target),
        Command::Task(task) => session.task(task),
        Command::Point(point) => session.point(point),
        Command::Replace(replace) => session.replace(replace),
        Command::Promote(promote) => session.promote(promote),
        Command::Demote(group) => session.demote(&group.group),
        Command::Forget(group) => session.forget(&group.group),
        Command::Node(node) => session.node(node),
        Command::Status(status) => session.status(status),
        Command::Events(events) => session.events(events),
        Command::Doctor => session.doctor(),
        Command::Set(set) => session.set(set),
        Command::Get(get) => session.get(get),
        Command::Demo(demo) => crate::demo::run(demo, output),
        Command::Completions { shell } => {
            output.data(&reference::completions(*shell)?);
            Ok(Outcome::Done)
        }
        Command::Man { dir } => {
            reference::man_pages(dir)?;
            Ok(Outcome::Done)
        }
    }
}

impl Session<'_> {
    /// Refuses what destroys data unless `--yes` was given; says what it would do.
    pub(crate) fn confirmed(&self, what: &str) -> anyhow::Result<()> {
        if self.arguments.global.yes {
            self.output.talk(what);
            return Ok(());
        }
        bail!("{what} Nothing was done: add --yes if you mean it")
    }
}
