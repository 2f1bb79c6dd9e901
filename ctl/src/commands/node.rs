//! Trust between nodes.

use super::Session;
use crate::Outcome;
use crate::args::{NodeCommand, NodePair};
use crate::render;
use anyhow::bail;
use blkrep_api::{
    NodeForgetRequest, NodeInviteReply, NodeInviteRequest, NodeList, NodePairRequest, NodeReport,
    NodeRoleRequest, NodeRotateRequest, route,
};

impl Session<'_> {
    pub(super) fn node(&self, command: &NodeCommand) -> anyhow::Result<Outcome> {
        match command {
            NodeCommand::Pair(pair) if pair.invite => self.invite(pair),
            NodeCommand::Pair(pair) => self.pair(pair),
            NodeCommand::List => self.nodes(),
            NodeCommand::Forget { name } => {
                let node = name.clone();
                self.command(route::NODE_FORGET, &NodeForgetRequest { node })
            }
            NodeCommand::Rotate { force } => {
                if *force {
                    self.confirmed("Nodes that are not reached must be paired again.")?;
                }
                let force = *force;
                self.command(route::NODE_ROTATE, &NodeRotateRequest { force })
            }
            NodeCommand::Role { name, role } => {
                let (node, role) = (name.clone(), *role);
                self.command(route::NODE_ROLE, &NodeRoleRequest { node, role })
            }
        }
    }

    fn invite(&self, pair: &NodePair) -> anyhow::Result<Outcome> {
        let request = NodeInviteRequest {
            valid_seconds: pair.valid.as_secs(),
            role: pair.role,
        };
        let reply: NodeInviteReply = self.client.post(route::NODE_INVITE, &request)?;
        if self.output.json {
            self.output.json(&reply)?;
            return Ok(Outcome::Done);
        }
        self.output.talk(&format!(
            "On the other node, within {} s, with this node's address:\n  blkctl node pair \
             ADDR:PORT --token TOKEN\nThis node listens on {}. The token works once:",
            reply.valid_seconds, reply.listen
        ));
        self.output.data(&format!("{}\n", reply.token));
        Ok(Outcome::Done)
    }

    fn pair(&self, pair: &NodePair) -> anyhow::Result<Outcome> {
        let (Some(address), Some(token)) = (&pair.at, &pair.token) else {
            bail!("give the address of the other node and its token, or --invite to make one");
        };
        let request = NodePairRequest {
            address: address.clone(),
            token: token.clone(),
            role: pair.role,
        };
        let reply: NodeReport = self.client.post(route::NODE_PAIR, &request)?;
        if self.output.json {
            self.output.json(&reply)?;
        } else {
            let (name, fingerprint) = (&reply.name, &reply.fingerprint);
            self.output.talk(&format!(
                "paired with node {name}, certificate {fingerprint}"
            ));
        }
        Ok(Outcome::Done)
    }

    fn nodes(&self) -> anyhow::Result<Outcome> {
        let nothing = serde_json::json!({});
        let list: NodeList = self.client.get(route::NODES, &nothing)?;
        if self.output.json {
            self.output.json(&list)?;
        } else {
            self.output.data(&render::nodes(self.output.painter, &list));
        }
        Ok(Outcome::Done)
    }
}
