//! The applications of one group, and the record of all they did.
//!
//! Owns lives and ages. A *life* is the application on one node; after a takeover a second one begins
//! on another, and the first goes on as long as its device answers. An *age* is what one life's
//! record says up to a power cut of its host. Answers of devices enter, complaints leave.

use super::age::Age;
use super::app::App;
use super::cluster::Cluster;
use super::front::Front;
use super::judge;
use super::unflushed::unflushed;
use blkrep_io::sim::SimRandom;
use blkrep_types::Nanos;
use std::time::Duration;

/// How soon an application looks again when it could not issue a request.
const FULL_WAIT: Duration = Duration::from_millis(2);

/// How long one thinks that only keeps going.
const TRICKLE: Duration = Duration::from_millis(50);

/// An application on a node.
#[derive(Debug)]
pub struct Life {
    /// Where it is.
    pub node: usize,
    /// What it does.
    pub app: App,
    /// It issues requests.
    pub active: bool,
    /// Nobody waits for its requests.
    pub trickles: bool,
    /// Its node will never serve it again, or nobody cares.
    pub over: bool,
    /// Its host lost power and has not served since: its age is over.
    age_over: bool,
    /// Its host lost power while a target served the group: how it goes on is what the target has, once that
    /// has applied everything.
    there: bool,
    issue_at: Nanos,
}

/// A group and its applications.
#[derive(Debug)]
pub struct GroupRun {
    group: usize,
    cluster: Cluster,
    random: SimRandom,
    /// Its devices, by node.
    fronts: Vec<Vec<Front>>,
    /// The last one is the one that counts.
    lives: Vec<Life>,
    /// Ages that have ended.
    ended: Vec<Age>,
    /// Ages so far.
    runs: u64,
}

impl Life {
    /// True while it is not known with what it goes on.
    #[must_use]
    pub const fn waits_for_there(&self) -> bool {
        self.there
    }

    /// It issues nothing until then.
    pub fn rest(&mut self, until: Nanos) {
        self.issue_at = self.issue_at.max(until);
    }
}

impl GroupRun {
    /// A group whose first application is on its home node.
    #[must_use]
    pub fn new(cluster: &Cluster, group: usize) -> Self {
        Self::later(cluster, group, 0)
    }

    /// As [`GroupRun::new`], over volumes that hold what so many earlier ages wrote.
    #[must_use]
    pub fn later(cluster: &Cluster, group: usize, runs: u64) -> Self {
        let volumes = cluster.plan.groups[group].volumes.len();
        let fronts = (0..cluster.plan.nodes).map(|_| (0..volumes).map(|_| Front::new()).collect());
        let mut made = Self {
            group,
            cluster: cluster.clone(),
            random: cluster.world.fork_random(),
            fronts: fronts.collect(),
            lives: Vec::new(),
            ended: Vec::new(),
            runs,
        };
        made.begin_life(cluster.plan.groups[group].home);
        made
    }

    /// An application begins on a node, with what its volumes hold now. That before it counts no more.
    pub fn begin_life(&mut self, node: usize) {
        let plan = &self.cluster.plan.groups[self.group];
        self.runs += 1;
        // An earlier one there had the same devices.
        let earlier = self.lives.iter_mut().filter(|life| life.node == node);
        earlier.for_each(|life| life.over = true);
        self.lives.push(Life {
            node,
            app: App::new(
                self.random.fork(),
                (plan.habits, plan.block_bytes),
                self.fronts[node].clone(),
                self.runs,
                self.cluster.images(node, self.group),
            ),
            active: false,
            trickles: false,
            over: false,
            age_over: false,
            there: false,
            issue_at: self.cluster.world.now(),
        });
    }

    /// Ages so far.
    #[must_use]
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// Its devices on a node.
    #[must_use]
    pub fn fronts(&self, node: usize) -> &[Front] {
        &self.fronts[node]
    }

    /// The application that counts.
    ///
    /// # Panics
    /// Never: there is one from the beginning.
    #[must_use]
    pub fn life(&self) -> &Life {
        self.lives.last().expect("one begins with the group")
    }

    /// The application that counts.
    ///
    /// # Panics
    /// Never: there is one from the beginning.
    pub fn life_mut(&mut self) -> &mut Life {
        self.lives.last_mut().expect("one begins with the group")
    }

    /// All applications.
    pub fn lives_mut(&mut self) -> impl Iterator<Item = &mut Life> {
        self.lives.iter_mut()
    }

    /// All applications.
    pub fn lives(&self) -> impl Iterator<Item = &Life> {
        self.lives.iter()
    }

    /// Every age, the current ones last.
    #[must_use]
    pub fn ages(&self) -> Vec<&Age> {
        let current = self.lives.iter().map(|life| life.app.age());
        self.ended.iter().chain(current).collect()
    }

    /// When the next request is due, of applications that issue some.
    #[must_use]
    pub fn issue_at(&self) -> Option<Nanos> {
        let active = self.lives.iter().filter(|life| life.active && !life.over);
        active.map(|life| life.issue_at).min()
    }

    /// Issues what is due. `served` says which nodes serve the group, or will and keep requests.
    pub fn issue(&mut self, served: &dyn Fn(usize) -> bool, waits: &dyn Fn(usize) -> bool) {
        let plan = &self.cluster.plan.groups[self.group];
        let now = self.cluster.world.now();
        for life in &mut self.lives {
            if !life.active || life.over || now < life.issue_at {
                continue;
            }
            let served = served(life.node) || (waits(life.node) && !life.age_over);
            let room = life.app.outstanding() < plan.outstanding_max;
            let issued = served && room && !life.there && life.app.issue();
            let think = Duration::from_nanos(self.random.below(plan.think_nanos_max) + 1000);
            let least = match (life.trickles, issued) {
                (true, _) => TRICKLE,
                (false, true) => Duration::ZERO,
                (false, false) => FULL_WAIT,
            };
            life.issue_at = now.after(think.max(least));
        }
    }

    /// Takes every answer that came.
    ///
    /// # Errors
    /// What is wrong with a read.
    pub fn take_answers(&mut self) -> Result<(), String> {
        let group = self.group;
        for life in self.lives.iter_mut().filter(|life| !life.over) {
            let taken = life.app.take_answers();
            taken.map_err(|why| format!("group {group} on node {}: {why}", life.node))?;
        }
        Ok(())
    }

    /// A node's daemon is gone, and with it, if `power`, all that its host had in memory.
    ///
    /// # Errors
    /// What a flush had promised and is gone.
    pub fn node_is_gone(&mut self, node: usize, power: bool, reissues: bool) -> Result<(), String> {
        for life in self.lives.iter_mut().filter(|life| life.node == node) {
            if life.over {
                continue;
            }
            if power && self.cluster.serving.get(node, self.group).is_some() {
                life.there = true;
            }
            if power && !life.there {
                let images = self.cluster.images(node, self.group);
                judge::after_power_loss(life.app.age(), &images)?;
                life.age_over = true;
            }
        }
        for front in &self.fronts[node] {
            if power {
                front.forget();
            } else if !reissues {
                front.fail_outstanding();
            }
        }
        self.take_answers()
    }

    /// Somebody else writes to the volumes on a node, which nobody serves: what its application did is
    /// another age. What was flushed before must be safe by now; the rest a power cut may still take.
    ///
    /// # Errors
    /// What is wrong with a read that was answered before, or what a flush had promised and is not safe.
    pub fn others_write(&mut self, node: usize, write: impl FnOnce()) -> Result<(), String> {
        self.take_answers()?;
        let durable = self.cluster.durable_images(node, self.group);
        let unflushed = unflushed(&self.cluster, node, self.group);
        write();
        let ours = |life: &&mut Life| life.node == node && !life.over;
        for life in self.lives.iter_mut().filter(ours) {
            self.runs += 1;
            judge::after_power_loss(life.app.age(), &durable)?;
            let base = self.cluster.images(node, self.group);
            self.ended.push(life.app.begin_age(self.runs, base));
            life.app.begun_unflushed(unflushed.clone());
        }
        Ok(())
    }

    /// A node's daemon begins: after a power cut with a new age.
    pub fn node_is_back(&mut self, node: usize) {
        for life in &mut self.lives {
            if life.node == node && life.age_over && !life.over && !life.there {
                self.runs += 1;
                let base = self.cluster.images(node, self.group);
                self.ended.push(life.app.begin_age(self.runs, base));
                life.age_over = false;
            }
        }
    }

    /// What an application goes on with after its host lost power is known: it is judged, and a new age begins.
    ///
    /// # Errors
    /// What a flush had promised and is gone.
    pub fn go_on_there(&mut self, node: usize) -> Result<(), String> {
        let images = self.cluster.images_of(node, self.group);
        for life in &mut self.lives {
            if life.node == node && life.there && !life.over {
                judge::after_power_loss(life.app.age(), &images)?;
                self.runs += 1;
                self.ended
                    .push(life.app.begin_age(self.runs, images.clone()));
                life.there = false;
                life.age_over = false;
            }
        }
        Ok(())
    }

    /// A host lost power while its daemon was starting.
    pub fn start_lost_power(&mut self, node: usize) {
        for life in self
            .lives
            .iter_mut()
            .filter(|life| life.node == node && !life.there)
        {
            life.age_over = true;
        }
    }
}
