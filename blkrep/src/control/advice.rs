//! States put into words: what is wrong, what it means, what to do next.
//!
//! Owns the sentences of `blkctl status`. A group's states enter; its problems leave, the worst
//! first. Never changes a state.

use blkrep_api::{
    ConnectionState, DataState, GroupStatus, LinkStatus, MirrorState, OnLoss, Problem,
    ProblemLevel, ProtectionState, ReplicationState, RetryReason, RetryingStatus, Role,
    TargetState, TargetStatus, TransmitState, VolumeState, VolumeStatus,
};
use blkrep_types::GroupName;

/// Adds the problems that the group's states show to those its node named.
pub(super) fn explain(group: &mut GroupStatus) {
    let mut problems = std::mem::take(&mut group.problems);
    let name = &group.name;
    problems.extend(group.volumes.iter().filter_map(|v| of_volume(name, v)));
    if group.role == Role::Source || group.role == Role::Promoted {
        problems.extend(detached(group, problems.is_empty()));
        problems.extend(unprotected(group));
    }
    for link in &group.links {
        if link.peer.is_empty() {
            problems.push(of_former_source(name, link));
            continue;
        }
        if link.connection == ConnectionState::Simulated {
            problems.push(of_simulation(name, link));
            continue;
        }
        problems.extend(of_connection(name, link));
        problems.extend(of_stream(name, link));
        problems.extend(of_mirror(name, link));
    }
    if let (Role::Target, Some(target)) = (group.role, &group.target) {
        problems.extend(of_target(name, target));
        problems.extend(of_replica(name, target));
    }
    problems.sort_by_key(|problem| std::cmp::Reverse(problem.level));
    group.problems = problems;
}

fn note(what: String, meaning: &str, action: String) -> Problem {
    Problem::new(ProblemLevel::Note, what, meaning, action)
}

fn warning(what: String, meaning: &str, action: String) -> Problem {
    Problem::new(ProblemLevel::Warning, what, meaning, action)
}

fn error(what: String, meaning: &str, action: String) -> Problem {
    Problem::new(ProblemLevel::Error, what, meaning, action)
}

fn of_volume(group: &GroupName, volume: &VolumeStatus) -> Option<Problem> {
    let VolumeStatus { name, backing, .. } = volume;
    match volume.state {
        VolumeState::Served | VolumeState::Offline | VolumeState::Replica => None,
        VolumeState::Recovering => Some(warning(
            format!("volume {name} waits to be served again"),
            "its device is open and requests wait; none fails",
            "wait; if it lasts, look at: blkctl events".to_owned(),
        )),
        VolumeState::Frozen => Some(error(
            format!("volume {name} is frozen: its backing {backing} failed"),
            "requests of the application wait, as volume.on-backing-error asks for",
            format!(
                "repair the backing; or pass the errors on: blkctl set --group {group} \
                 volume.on-backing-error=pass; or let a target serve the group: \
                 volume.on-backing-error=target (if it is that already: blkctl events says why \
                 none can)"
            ),
        )),
        VolumeState::ServedByTarget => Some(error(
            format!("the backing {backing} of volume {name} is lost; a target serves the group"),
            "the newest data is at that target alone; requests wait while its link is down, and \
             nothing is mirrored to other targets",
            format!(
                "when it suits you, promote it there: blkctl promote {group}; then make this node \
                 its target on a good disk: blkctl connect {group} --to THIS-NODE --mirror \
                 checksum --yes. The backing is never served again by itself"
            ),
        )),
        VolumeState::Failing => Some(error(
            format!("the backing {backing} of volume {name} returns errors"),
            "the application gets them; what could not be written counts as different on every \
             link",
            "check the disk: dmesg and blkctl events tell which requests failed".to_owned(),
        )),
        VolumeState::Fenced => Some(error(
            format!("volume {name} returns errors: newer data of group {group} exists elsewhere"),
            "the group was promoted on another node; what was written here since is kept apart",
            format!(
                "use the data there; to make this node its target, run there: blkctl connect \
                 {group} --to THIS-NODE --mirror checksum --yes"
            ),
        )),
    }
}

fn is_offline(group: &GroupStatus) -> bool {
    let mut volumes = group.volumes.iter();
    !group.volumes.is_empty() && volumes.all(|volume| volume.state == VolumeState::Offline)
}

/// A group that nobody serves, where that is not somebody's trouble already.
fn detached(group: &GroupStatus, untroubled: bool) -> Option<Problem> {
    let volume = group.volumes.first()?;
    (is_offline(group) && untroubled).then(|| {
        note(
            format!("group {} is detached", group.name),
            "nothing is served and nothing is replicated; its links are remembered, and the next \
             connection compares everything",
            format!(
                "serve it again: blkctl attach {} --group {} --backing {}; or give it up: blkctl \
                 forget {}",
                volume.name, group.name, volume.backing, group.name
            ),
        )
    })
}

fn unprotected(group: &GroupStatus) -> Option<Problem> {
    let name = &group.name;
    let promoted = group.role == Role::Promoted;
    // What links a group has is known while it is served.
    let simulated = |link: &LinkStatus| link.connection == ConnectionState::Simulated;
    (group.links.iter().all(simulated) && !is_offline(group)).then(|| {
        if promoted {
            // Whatever its former source has is older, or apart.
            return warning(
                format!("group {name} was promoted here and has no link"),
                "its newest data exists on this node only",
                format!("connect it: blkctl connect {name} --to ADDR:PORT --mirror checksum --yes"),
            );
        }
        note(
            format!("group {name} has no link"),
            "its data exists on this node only",
            format!("connect it: blkctl connect {name} --to ADDR:PORT"),
        )
    })
}

fn of_connection(group: &GroupName, link: &LinkStatus) -> Option<Problem> {
    let LinkStatus { name, peer, .. } = link;
    match link.connection {
        ConnectionState::Connected | ConnectionState::Simulated => None,
        // Between two attempts it is down, in an attempt it connects: one who looks sees no change.
        ConnectionState::Connecting if link.last_error.is_none() => None,
        ConnectionState::Down | ConnectionState::Connecting
            if link.transmit == TransmitState::Scheduled =>
        {
            None
        }
        ConnectionState::Down | ConnectionState::Connecting => Some(down(link)),
        ConnectionState::Refused => Some(error(
            format!(
                "link {name} to {peer} is refused: {}",
                link.refusal.as_deref().unwrap_or("no reason was given")
            ),
            "nothing is replicated and nothing was overwritten; changes are tracked",
            format!("do what the reason asks for, then: blkctl connect {group} --to {peer}"),
        )),
        ConnectionState::Disconnected => Some(note(
            format!("link {name} to {peer} was ended by command"),
            "the target gets older with every write; changes are tracked",
            format!("connect it again: blkctl connect {group} --to {peer}"),
        )),
    }
}

fn of_simulation(group: &GroupName, link: &LinkStatus) -> Problem {
    note(
        format!("link {} is simulated", link.name),
        "what it would send is measured; nothing leaves this node, and it protects nothing",
        format!(
            "end it when you know enough: blkctl disconnect {group} --link {} --forget",
            link.name
        ),
    )
}

/// A promoted group keeps account of what its former source lacks, wherever that is now.
fn of_former_source(group: &GroupName, link: &LinkStatus) -> Problem {
    warning(
        format!("the former source of group {group} does not follow"),
        "the newest data exists on this node only",
        format!(
            "when it is back, overwrite what it has with this node's data: blkctl connect {group} \
             --to ADDR:PORT --mirror checksum --yes; it lacks at least {} by now",
            link.dirty_bytes
        ),
    )
}

fn down(link: &LinkStatus) -> Problem {
    let LinkStatus { name, peer, .. } = link;
    let again = "it is tried again by itself unless link.reconnect is off";
    let (why, action) = match &link.last_error {
        None => (
            String::new(),
            format!("check the network and that blkrepd runs at {peer}"),
        ),
        Some(error) => {
            let (why, action) = error.split_once("; ").unwrap_or((
                error,
                "look at blkctl events here and on the target, and at the network between them",
            ));
            (format!(": {why}"), action.to_owned())
        }
    };
    warning(
        format!("link {name} to {peer} is down{why}"),
        "writes wait in the log, and become dirty extents when it is full; nothing is lost",
        format!("{action}; {again}"),
    )
}

/// A link whose target never had a whole copy: nothing ran over, the first mirror is to come.
fn is_unmirrored(link: &LinkStatus) -> bool {
    link.data_state == DataState::Unknown || link.data_state == DataState::NotReady
}

/// What completed writes rely on, where the mode asks for the target's acknowledgement.
fn of_protection(group: &GroupName, link: &LinkStatus) -> Option<Problem> {
    let LinkStatus { name, mode, .. } = link;
    match link.protection {
        ProtectionState::NotAsked | ProtectionState::Kept => None,
        ProtectionState::CatchingUp => Some(note(
            format!("link {name} is catching up"),
            "some writes that completed are still on their way to the target",
            format!("wait; blkctl events tells when mode {mode} holds again"),
        )),
        ProtectionState::Degraded => Some(warning(
            format!("link {name} is degraded: writes complete without what mode {mode} asks for"),
            "what is written now would be lost with this node",
            "restore the link; it is protected again once its target has everything".to_owned(),
        )),
        ProtectionState::Waiting => Some(match link.on_loss {
            OnLoss::Continue => warning(
                format!("link {name} is lost; writes wait for it"),
                "none completed without the target",
                format!("after {} ms they go on without it", link.loss_timeout_ms),
            ),
            OnLoss::Block => error(
                format!("link {name} is lost; writes wait until it is back"),
                "none completed without the target",
                format!(
                    "restore the link; or let them go on without it: \
                     blkctl link set {group} --link {name} --on-loss continue"
                ),
            ),
            OnLoss::Fail => error(
                format!(
                    "link {name} is lost; after {} ms writes get errors",
                    link.loss_timeout_ms
                ),
                "none completed without the target",
                format!(
                    "restore the link; or let them go on without it: \
                     blkctl link set {group} --link {name} --on-loss continue"
                ),
            ),
        }),
    }
}

fn of_stream(group: &GroupName, link: &LinkStatus) -> Vec<Problem> {
    let mut problems = Vec::from_iter(of_protection(group, link));
    let LinkStatus { name, peer, .. } = link;
    match link.transmit {
        TransmitState::Started => {}
        TransmitState::Scheduled => problems.push(note(
            format!("link {name} is held by its schedule"),
            "writes wait in the log, and become extents if it runs over; the target gets them in the next session",
            format!(
                "see blkctl transmit schedule {group}; a session now: blkctl transmit start {group}"
            ),
        )),
        TransmitState::Paused => problems.push(note(
            format!("transmission of link {name} is paused"),
            "writes wait in the log",
            format!("go on: blkctl transmit resume {group}"),
        )),
        TransmitState::Stopped => problems.push(note(
            format!("transmission of link {name} is stopped"),
            "changes are tracked as dirty extents and nothing is sent",
            format!("go on: blkctl transmit start {group}"),
        )),
        TransmitState::Error => problems.push(error(
            format!("sending on link {name} to {peer} failed"),
            "nothing is replicated; changes are tracked",
            "look at: blkctl events --severity error".to_owned(),
        )),
    }
    problems.extend(of_congestion(link));
    problems.extend(of_applying(link));
    if link.replication == ReplicationState::Behind && is_unmirrored(link) {
        problems.push(warning(
            format!(
                "link {name} waits for its mirror: {} to look at",
                link.dirty_bytes
            ),
            "what the target holds, if anything, is not known here before it is connected",
            format!("wait; once it is connected, blkctl status {group} shows the progress"),
        ));
    } else if link.replication == ReplicationState::Behind {
        problems.push(warning(
            format!(
                "link {name} is behind: {} in dirty extents",
                link.dirty_bytes
            ),
            "the log overflowed; the target keeps an older, consistent state until it is mirrored",
            format!(
                "wait for the difference mirror, or start it: blkctl mirror start {group}; a \
                 larger log: blkctl set --group {group} group.log-memory=SIZE"
            ),
        ));
    }
    problems
}

/// What the kernel does not do with its connections.
fn of_congestion(link: &LinkStatus) -> Option<Problem> {
    let refused = link.congestion_refused.as_deref()?;
    let (why, action) = refused.split_once("; ").unwrap_or((refused, ""));
    let control = link.congestion_control.as_deref().unwrap_or("the system's");
    Some(warning(
        format!("link {}: {why}", link.name),
        &format!(
            "its connections use {control}; over a long line that loses packets they may carry less"
        ),
        action.to_owned(),
    ))
}

/// What the target does with what it receives.
fn of_applying(link: &LinkStatus) -> Option<Problem> {
    let LinkStatus { name, peer, .. } = link;
    match link.target_status? {
        TargetState::Ok | TargetState::NotLoaded => None,
        TargetState::Paused | TargetState::PausePending => Some(note(
            format!("applying at the target of link {name} is paused"),
            "its journal goes on receiving until it is full, then writes wait in the log",
            "go on, at the target: blkctl target resume".to_owned(),
        )),
        TargetState::Retrying => Some(warning(
            format!("the disk of link {name}'s target takes no writes; they are tried again"),
            "its journal goes on receiving until it is full, then writes wait in the log",
            format!("see blkctl status at {peer}: it says which disk, and why"),
        )),
    }
}

fn of_mirror(group: &GroupName, link: &LinkStatus) -> Vec<Problem> {
    let mut problems = Vec::new();
    let name = &link.name;
    if link.mirror.not_converging {
        problems.push(warning(
            format!("the mirror of link {name} does not converge"),
            "writes dirty extents faster than they are sent: the target stays at an older state until there are fewer",
            format!("raise what limits the link (blkctl transmit limit {group}), or write less; see blkctl status {group}"),
        ));
    }
    // One that is not connected says so already.
    let talks = link.connection == ConnectionState::Connected;
    match link.mirror.state {
        MirrorState::Waiting if !talks => {}
        MirrorState::Idle
        | MirrorState::Mirroring
        | MirrorState::Verifying
        | MirrorState::Restoring => {}
        MirrorState::Paused => problems.push(note(
            format!("the mirror of link {name} is paused"),
            "the target is not equal before it ends",
            format!("go on: blkctl mirror resume {group}"),
        )),
        MirrorState::Waiting if link.mirror.held_back => problems.push(note(
            format!("the mirror of link {name} waits for its target, whose journal is nearly full"),
            "the application's writes go first; the mirror goes on when the target has applied some",
            format!("let the target go on if it is paused; else wait, or: blkctl set --group {group} link.mirror-high-mark=100"),
        )),
        MirrorState::Waiting => problems.push(note(
            format!("the mirror of link {name} waits"),
            "it goes on when the link is up and drains faster than new extents become dirty",
            format!("let it run now: blkctl mirror start {group}"),
        )),
    }
    let mirrors = !matches!(
        link.mirror.state,
        MirrorState::Idle | MirrorState::Verifying
    );
    let needs = matches!(
        link.data_state,
        DataState::MirrorRequired | DataState::NotReady
    );
    if needs && !mirrors && link.connection == ConnectionState::Connected {
        problems.push(error(
            format!("the replica of link {name} holds no whole copy"),
            "it cannot be promoted",
            format!("mirror it: blkctl mirror start {group}"),
        ));
    }
    problems
}

fn of_target(group: &GroupName, target: &TargetStatus) -> Vec<Problem> {
    let mut problems = Vec::new();
    if target.status == TargetState::NotLoaded {
        // The node says why; nothing else is known.
        return problems;
    }
    if !target.connected {
        problems.push(warning(
            format!("the source of group {group} is not connected"),
            "the replica stays as it is; it may miss the source's last writes",
            format!(
                "check the source and the network; if the source is lost: blkctl promote {group}"
            ),
        ));
    }
    if let Some(task) = &target.task {
        problems.push(note(
            format!("a task of group {group} runs: {task}"),
            "nothing is applied meanwhile; the journal goes on receiving until it is full",
            format!("wait for it, or for task.timeout: blkctl task list {group}"),
        ));
    }
    match target.status {
        TargetState::Ok => {}
        TargetState::Paused | TargetState::PausePending => problems.push(note(
            format!("applying of group {group} is paused"),
            "the journal goes on receiving until it is full, then the source is held back",
            format!("go on: blkctl target resume {group}"),
        )),
        TargetState::Retrying => problems.push(of_retrying(group, target.retrying.as_ref())),
        TargetState::NotLoaded => {}
    }
    problems
}

/// A disk of the target that does not take what is written.
fn of_retrying(group: &GroupName, retrying: Option<&RetryingStatus>) -> Problem {
    let Some(retrying) = retrying else {
        return error(
            format!("the disks of group {group}'s replica fail and are tried again"),
            "nothing is freed from the journal meanwhile; when it is full the source is held back",
            "check the target's disks: dmesg and blkctl events tell which requests failed"
                .to_owned(),
        );
    };
    let RetryingStatus {
        path,
        error: said,
        failures,
        ..
    } = retrying;
    let action = match retrying.why {
        RetryReason::Full => format!("make room for {path}"),
        RetryReason::Busy => format!("find out who uses it: fuser -v {path}"),
        RetryReason::Denied => format!("make {path} writable; see dmesg for why it is not"),
        RetryReason::Unknown => format!(
            "check the disk below {path}; to give up what it does not take: blkctl set --group {group} target.retry-limit=1"
        ),
    };
    error(
        format!("{path} of group {group} takes no writes: {said} ({failures} times)"),
        "they are tried again; the replica stays at its last state and the journal goes on receiving, up to its size",
        action,
    )
}

fn of_replica(group: &GroupName, target: &TargetStatus) -> Option<Problem> {
    match target.data_state {
        _ if target.status == TargetState::NotLoaded => None,
        DataState::Ok => None,
        DataState::Mirroring => Some(warning(
            format!("the replica of group {group} is being mirrored"),
            "it is not consistent before the mirror ends and cannot be promoted",
            format!("wait; the source shows the progress: blkctl status {group}"),
        )),
        DataState::MirrorRequired | DataState::NotReady => Some(error(
            format!("the replica of group {group} holds no whole copy"),
            "it cannot be promoted",
            format!("on the source: blkctl mirror start {group}"),
        )),
        DataState::RestoreRequired => Some(error(
            format!("this node's data of group {group} is not the newest"),
            "the group was promoted elsewhere; nothing is overwritten by itself",
            format!(
                "on the node with the right data: blkctl connect {group} --to THIS-NODE --mirror \
                 checksum --yes"
            ),
        )),
        DataState::Reverted => Some(warning(
            format!("the replica of group {group} was set back to an earlier point"),
            "it is consistent and older than the source",
            format!("on the source: blkctl mirror start {group}"),
        )),
        DataState::Unknown => Some(error(
            format!("what the replica of group {group} is worth is not known"),
            "its records are missing or damaged",
            format!("on the source: blkctl mirror start {group} --kind checksum"),
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use blkrep_api::{CompressionState, MirrorStatus, Mode, QueueStatus};
    use blkrep_types::{ByteLen, Generation, LinkName};

    fn link() -> LinkStatus {
        LinkStatus {
            name: LinkName::new("east").unwrap(),
            peer: "192.0.2.1:7420".to_owned(),
            mode: Mode::Async,
            on_loss: OnLoss::Continue,
            loss_timeout_ms: 2000,
            protection: ProtectionState::NotAsked,
            connection: ConnectionState::Connected,
            transmit: TransmitState::Started,
            mirror: MirrorStatus::idle(),
            replication: ReplicationState::Replicating,
            data_state: DataState::Ok,
            lag_ms: Some(0),
            queue: QueueStatus::default(),
            dirty_bytes: ByteLen::ZERO,
            sent_bytes: ByteLen::ZERO,
            sent_compressed_bytes: ByteLen::ZERO,
            bandwidth_limit: None,
            compression: CompressionState::Off,
            connections: 1,
            connections_wanted: 1,
            connections_lost: 0,
            congestion_control: None,
            congestion_refused: None,
            schedule: None,
            simulated: None,
            proven: None,
            target_status: None,
            target_journal_bytes: None,
            connected_since: None,
            refusal: None,
            last_error: None,
        }
    }

    fn group(links: Vec<LinkStatus>) -> GroupStatus {
        GroupStatus {
            name: GroupName::new("db").unwrap(),
            role: Role::Source,
            generation: Generation::NONE,
            volumes: Vec::new(),
            links,
            throttle: None,
            served_by: None,
            target: None,
            problems: Vec::new(),
        }
    }

    #[test]
    fn a_healthy_group_has_no_problem_and_an_unlinked_one_is_named() {
        let mut healthy = group(vec![link()]);
        explain(&mut healthy);
        assert_eq!(healthy.problems, []);
        let mut lonely = group(Vec::new());
        explain(&mut lonely);
        assert!(lonely.problems[0].action.contains("blkctl connect db"));
    }

    #[test]
    fn a_simulated_link_protects_nothing() {
        let mut simulated = link();
        simulated.connection = ConnectionState::Simulated;
        simulated.data_state = DataState::NotReady;
        let mut alone = group(vec![simulated.clone()]);
        explain(&mut alone);
        let what: Vec<_> = alone.problems.iter().map(|p| p.what.as_str()).collect();
        assert_eq!(what, ["group db has no link", "link east is simulated"]);
        let mut beside = group(vec![simulated, link()]);
        explain(&mut beside);
        assert_eq!(beside.problems.len(), 1);
    }

    #[test]
    fn a_congestion_control_that_is_not_to_be_had_is_a_problem_with_a_way_out() {
        let mut refused = link();
        refused.congestion_control = Some("cubic".to_owned());
        refused.congestion_refused = Some("there is no 'vegas'; load it".to_owned());
        let mut group = group(vec![refused]);
        explain(&mut group);
        let [problem] = &group.problems[..] else {
            panic!("one problem: {:?}", group.problems);
        };
        assert_eq!(problem.what, "link east: there is no 'vegas'");
        assert_eq!(problem.action, "load it");
        assert!(problem.meaning.contains("use cubic"));
    }

    #[test]
    fn a_promoted_group_without_a_link_is_told_how_to_take_its_former_source_over() {
        let mut group = group(Vec::new());
        group.role = Role::Promoted;
        explain(&mut group);
        assert_eq!(group.problems.len(), 1);
        assert!(group.problems[0].action.contains("--mirror checksum --yes"));
    }

    #[test]
    fn a_link_that_does_not_keep_its_promise_says_what_happens_to_writes() {
        let told = |protection, on_loss| {
            let mode = Mode::Sync;
            let link = LinkStatus {
                mode,
                protection,
                on_loss,
                ..link()
            };
            let mut group = group(vec![link]);
            explain(&mut group);
            group.problems
        };
        assert_eq!(told(ProtectionState::Kept, OnLoss::Block), []);
        let degraded = told(ProtectionState::Degraded, OnLoss::Continue);
        assert!(degraded[0].what.contains("without what mode sync asks for"));
        for (on_loss, what) in [
            (OnLoss::Continue, "writes wait for it"),
            (OnLoss::Block, "writes wait until it is back"),
            (OnLoss::Fail, "after 2000 ms writes get errors"),
        ] {
            let waiting = told(ProtectionState::Waiting, on_loss);
            assert!(waiting[0].what.ends_with(what), "{waiting:?}");
        }
    }

    /// It was said to be behind, and to be connected again to nowhere.
    #[test]
    fn a_former_source_is_named_once_with_the_way_back() {
        let former = LinkStatus {
            peer: String::new(),
            connection: ConnectionState::Disconnected,
            replication: ReplicationState::Behind,
            ..link()
        };
        let mut group = group(vec![former]);
        group.role = Role::Promoted;
        explain(&mut group);
        assert_eq!(group.problems.len(), 1);
        let action = &group.problems[0].action;
        assert!(action.contains("blkctl connect db --to ADDR:PORT --mirror checksum --yes"));
    }

    #[test]
    fn a_link_that_its_schedule_holds_is_not_in_trouble() {
        let held = LinkStatus {
            connection: ConnectionState::Down,
            transmit: TransmitState::Scheduled,
            last_error: Some("the schedule holds the link".to_owned()),
            ..link()
        };
        let mut group = group(vec![held]);
        explain(&mut group);
        let [problem] = &group.problems[..] else {
            panic!("{:?}", group.problems);
        };
        assert_eq!(problem.level, ProblemLevel::Note);
        assert!(problem.action.contains("blkctl transmit schedule db"));
    }

    #[test]
    fn a_link_that_is_down_says_why_and_what_to_do() {
        let mut link = link();
        link.connection = ConnectionState::Down;
        link.last_error = Some("cannot connect: refused; check that it runs there".to_owned());
        let mut told = group(vec![link.clone()]);
        explain(&mut told);
        assert!(
            told.problems[0]
                .what
                .ends_with("is down: cannot connect: refused")
        );
        assert!(
            told.problems[0]
                .action
                .starts_with("check that it runs there; it is tried")
        );
        link.last_error = Some("rubbish".to_owned());
        let mut told = group(vec![link]);
        explain(&mut told);
        assert!(told.problems[0].what.ends_with("is down: rubbish"));
        assert!(told.problems[0].action.contains("blkctl events"));
    }

    #[test]
    fn a_detached_group_is_not_said_to_have_no_link() {
        let mut detached = group(Vec::new());
        detached.volumes = vec![VolumeStatus {
            name: blkrep_types::VolumeName::new("pg").unwrap(),
            device: String::new(),
            frontend: None,
            backing: "/dev/sdb".to_owned(),
            size_bytes: ByteLen::new(4096),
            state: VolumeState::Offline,
            read_only: false,
            transient: false,
        }];
        explain(&mut detached);
        assert_eq!(detached.problems.len(), 1);
        let action = &detached.problems[0].action;
        assert!(
            action.contains("blkctl attach pg --group db --backing /dev/sdb"),
            "{action}"
        );
    }

    #[test]
    fn the_worst_problem_comes_first_and_the_nodes_own_are_kept() {
        let mut link = link();
        link.transmit = TransmitState::Paused;
        link.connection = ConnectionState::Refused;
        link.refusal = Some("another group".to_owned());
        let mut group = group(vec![link]);
        group.problems = vec![warning("own".to_owned(), "m", "a".to_owned())];
        explain(&mut group);
        let levels: Vec<_> = group.problems.iter().map(|p| p.level).collect();
        assert_eq!(
            levels,
            [
                ProblemLevel::Error,
                ProblemLevel::Warning,
                ProblemLevel::Note
            ]
        );
        assert!(group.problems[0].what.contains("another group"));
        assert_eq!(group.problems[1].what, "own");
    }

    #[test]
    fn every_data_state_but_ok_says_what_to_do_on_a_target() {
        for data_state in DataState::ALL {
            let mut group = group(Vec::new());
            group.role = Role::Target;
            group.target = Some(TargetStatus {
                source: None,
                proven: None,
                connected: true,
                connections: 1,
                out_of_order_bytes: ByteLen::ZERO,
                last_heard: None,
                data_state: *data_state,
                status: TargetState::Ok,
                journal_bytes: ByteLen::ZERO,
                journal_limit_bytes: ByteLen::ZERO,
                retrying: None,
                dirty_bytes: ByteLen::ZERO,
                task: None,
                bookmarks: 0,
            });
            explain(&mut group);
            assert_eq!(group.problems.is_empty(), *data_state == DataState::Ok);
            assert!(group.problems.iter().all(|p| !p.action.is_empty()));
        }
    }
}
