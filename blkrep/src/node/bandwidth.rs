//! Limits of bandwidth: which links share one, and what it is now.
//!
//! Owns a limit for each address that links lead to, and one more for each group that has settings of its own.
//! Settings and the clock on the wall enter; rates leave. Never sends anything.

use super::Inner;
use super::schedule::week_minute;
use crate::engine::link::Pace;
use crate::settings::{GroupSettings, Key};
use blkrep_api::{EventId, NewEvent};
use blkrep_types::{GroupName, Rate, rate_text};
use jiff::Zoned;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The links that share a limit: those to an address, but for those of a group with settings of its own.
type Sharers = (IpAddr, Option<GroupName>);

/// The limits of a node.
#[derive(Debug, Default)]
pub(super) struct Paces(BTreeMap<Sharers, Pace>);

/// The limit at this time.
fn rate_at(settings: &GroupSettings, now: &Zoned) -> Rate {
    let period = settings.bandwidth_schedule.at(week_minute(now));
    period.unwrap_or(settings.bandwidth).of(settings.line_rate)
}

impl Inner {
    /// The limit that a group's links to an address keep to.
    pub(super) fn pace_of(&self, group: &GroupName, peer: IpAddr) -> Pace {
        let keys = [
            Key::LinkLineRate,
            Key::LinkBandwidth,
            Key::LinkBandwidthSchedule,
        ];
        let own = self.settings.has_own(group, &keys);
        let own = own.then(|| group.clone());
        let rate = self.rate_of(own.as_ref(), &Zoned::now());
        let mut paces = self.paces();
        let new = || {
            let pace = Pace::default();
            pace.set_rate(rate);
            pace
        };
        paces.0.entry((peer, own)).or_insert_with(new).clone()
    }

    fn rate_of(&self, own: Option<&GroupName>, now: &Zoned) -> Rate {
        let settings = match own {
            Some(group) => self.settings.group(group),
            None => self.settings.any_group(),
        };
        rate_at(&settings, now)
    }

    /// Puts the limits in force that hold now, and tells which changed.
    pub(super) fn pace_links(&self) {
        let now = Zoned::now();
        let mut changed = Vec::new();
        let mut paces = self.paces();
        // Those of links that are gone.
        paces.0.retain(|_, pace| pace.is_shared());
        for ((peer, own), pace) in &paces.0 {
            let rate = self.rate_of(own.as_ref(), &now);
            if rate != pace.rate() {
                pace.set_rate(rate);
                changed.push((*peer, own.clone(), rate));
            }
        }
        drop(paces);
        for (peer, own, rate) in changed {
            let text = format!("links to {peer}: {}", rate_text(rate));
            let event = NewEvent::new(EventId::BandwidthChanged, text);
            self.tell(match own {
                Some(group) => event.group(&group),
                None => event,
            });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use blkrep_api::{SetRequest, SettingAssignment};
    use jiff::{ToSpan as _, civil::date, tz::TimeZone};

    fn limited(bandwidth: &str, schedule: &str) -> GroupSettings {
        let settings = Settings::defaults();
        let group = GroupName::new("db").unwrap();
        let assign = |key: &str, value: &str| SettingAssignment {
            key: key.to_owned(),
            value: Some(value.to_owned()),
        };
        let request = SetRequest {
            group: Some(group.clone()),
            assignments: vec![
                assign("link.bandwidth", bandwidth),
                assign("link.bandwidth-schedule", schedule),
            ],
        };
        settings.set(&request).unwrap();
        settings.group(&group)
    }

    /// Hours in which each limit held, hour by hour over two weeks from midnight of this day on.
    fn hours(
        settings: &GroupSettings,
        zone: &str,
        year: i16,
        month: i8,
        day: i8,
    ) -> BTreeMap<String, u32> {
        let zone = TimeZone::get(zone).unwrap();
        let mut now = date(year, month, day).to_zoned(zone.clone()).unwrap();
        let end = now
            .date()
            .checked_add(14.days())
            .unwrap()
            .to_zoned(zone)
            .unwrap();
        let mut hours = BTreeMap::new();
        while now < end {
            *hours.entry(rate_text(rate_at(settings, &now))).or_default() += 1;
            now = now.checked_add(1.hour()).unwrap();
        }
        hours
    }

    #[test]
    fn a_schedule_holds_by_the_clock_on_the_wall_over_two_weeks() {
        let office = limited(
            "unlimited",
            "mon-fri 08:00-18:00 2MiB/s, sun 00:00-06:00 1MiB/s",
        );
        let plain = hours(&office, "Europe/Berlin", 2026, 6, 1);
        let wanted = |slow, limited, free| {
            BTreeMap::from([
                ("1MiB/s".to_owned(), slow),
                ("2MiB/s".to_owned(), limited),
                ("unlimited".to_owned(), free),
            ])
        };
        assert_eq!(plain, wanted(12, 100, 224));
        // The clock goes forward at two on a Sunday: that period is an hour shorter, and no other.
        let spring = hours(&office, "Europe/Berlin", 2026, 3, 16);
        assert_eq!(spring, wanted(11, 100, 224));
        // It goes back at three: the hour comes twice.
        let autumn = hours(&office, "Europe/Berlin", 2026, 10, 12);
        assert_eq!(autumn, wanted(13, 100, 224));
    }

    #[test]
    fn a_limit_in_percent_is_a_part_of_the_line_that_was_stated() {
        let settings = Settings::defaults();
        let set = |assignments: &[(&str, &str)]| {
            let assign = |(key, value): &(&str, &str)| SettingAssignment {
                key: (*key).to_owned(),
                value: Some((*value).to_owned()),
            };
            settings.set(&SetRequest {
                group: None,
                assignments: assignments.iter().map(assign).collect(),
            })
        };
        let now = date(2026, 6, 1)
            .at(12, 0, 0, 0)
            .to_zoned(TimeZone::UTC)
            .unwrap();
        let rate = || rate_text(rate_at(&settings.any_group(), &now));
        let alone = set(&[("link.bandwidth", "70%")]).unwrap_err();
        assert!(
            alone.to_string().contains("needs link.line-rate"),
            "{alone}"
        );
        set(&[("link.bandwidth", "70%"), ("link.line-rate", "100Mbit/s")]).unwrap();
        assert_eq!(rate(), "70Mbit/s");
        set(&[("link.line-rate", "1Gbit/s")]).unwrap();
        assert_eq!(rate(), "700Mbit/s");
        set(&[("link.bandwidth-schedule", "mon 08:00-18:00 1%")]).unwrap();
        assert_eq!(rate(), "10Mbit/s");
        let small = set(&[("link.line-rate", "256kbit/s")]).unwrap_err();
        assert!(small.to_string().contains("less than 16KiB/s"), "{small}");
        let none = set(&[("link.line-rate", "none")]).unwrap_err();
        assert!(none.to_string().contains("needs link.line-rate"), "{none}");
        assert_eq!(rate(), "10Mbit/s", "what was refused changes nothing");
    }

    #[test]
    fn without_a_period_the_plain_limit_holds() {
        let night = limited("64KiB/s", "mon-sun 22:00-04:00 unlimited");
        let plain = hours(&night, "UTC", 2026, 6, 1);
        assert_eq!(plain["unlimited"], 14 * 6);
        assert_eq!(plain["64KiB/s"], 14 * 18);
    }
}
