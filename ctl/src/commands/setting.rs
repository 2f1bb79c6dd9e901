//! `set` and `get`.

use super::Session;
use crate::Outcome;
use crate::args::{Get, Set};
use crate::render;
use blkrep_api::{GetQuery, SetRequest, SettingAssignment, SettingReply, route};

impl Session<'_> {
    pub(super) fn set(&self, set: &Set) -> anyhow::Result<Outcome> {
        let assignments = set
            .assignments
            .iter()
            .map(|(key, value)| SettingAssignment {
                key: key.clone(),
                value: (!value.is_empty()).then(|| value.clone()),
            });
        let reply: SettingReply = self.client.post(
            route::SET,
            &SetRequest {
                group: set.group.clone(),
                assignments: assignments.collect(),
            },
        )?;
        if self.output.json {
            self.output.json(&reply)?;
        } else {
            for setting in &reply.settings {
                let (key, value, applies) = (&setting.key, &setting.value, &setting.applies);
                self.output.talk(&format!("{key} = {value}, {applies}"));
            }
        }
        Ok(Outcome::Done)
    }

    pub(super) fn get(&self, get: &Get) -> anyhow::Result<Outcome> {
        let reply: SettingReply = self.client.get(
            route::SETTINGS,
            &GetQuery {
                key: get.key.clone(),
                group: get.group.clone(),
            },
        )?;
        if self.output.json {
            self.output.json(&reply)?;
        } else {
            self.output
                .data(&render::settings(self.output.painter, &reply));
        }
        Ok(Outcome::Done)
    }
}
