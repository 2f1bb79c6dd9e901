//! `set` and `get`.

use super::Session;
use crate::Outcome;
use crate::args::{Get, Set};
use crate::render;
use blkrep_api::{GetQuery, SetRequest, SettingAssignment, SettingReply, route};
use blkrep_types::GroupName;

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

    /// Sets what limits the bandwidth of a group's links.
    pub(super) fn limit(
        &self,
        group: &GroupName,
        rate: Option<&str>,
        line: Option<&str>,
        schedule: Option<&str>,
    ) -> anyhow::Result<Outcome> {
        let settings = [
            ("link.line-rate", line),
            ("link.bandwidth", rate),
            ("link.bandwidth-schedule", schedule),
        ];
        let given = settings.into_iter().filter_map(|(key, value)| {
            let value = value?.to_owned();
            Some((key.to_owned(), value))
        });
        self.set(&Set {
            assignments: given.collect(),
            group: Some(group.clone()),
        })
    }

    /// Sets over how many connections a group's links send.
    pub(super) fn set_connections(&self, group: &GroupName, count: u8) -> anyhow::Result<()> {
        let assignment = SettingAssignment {
            key: "link.connections".to_owned(),
            value: Some(count.to_string()),
        };
        let _: SettingReply = self.client.post(
            route::SET,
            &SetRequest {
                group: Some(group.clone()),
                assignments: vec![assignment],
            },
        )?;
        Ok(())
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
