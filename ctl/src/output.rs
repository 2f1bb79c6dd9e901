//! What is printed, where, and in which colours.
//!
//! Owns the two streams: data on standard output, talk on standard error. A reader that has gone
//! (a closed pipe) ends the printing, not with an error.

use crate::args::Global;
use crate::client::Unreachable;
use blkrep_api::{ApiError, ErrorBody};
use clap::builder::styling::{AnsiColor, Style};
use serde::Serialize;
use std::io::{IsTerminal as _, Write as _};

/// What a piece of text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Strong,
    Good,
    Warn,
    Bad,
    Faint,
}

impl Tone {
    const fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Strong => Style::new().bold(),
            Self::Good => AnsiColor::Green.on_default(),
            Self::Warn => AnsiColor::Yellow.on_default().bold(),
            Self::Bad => AnsiColor::Red.on_default().bold(),
            Self::Faint => Style::new().dimmed(),
        }
    }
}

/// Puts text into colours, or not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Painter {
    colors: bool,
}

impl Painter {
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { colors: false };

    pub(crate) fn paint(self, tone: Tone, text: impl std::fmt::Display) -> String {
        if self.colors && tone != Tone::Plain {
            let style = tone.style();
            format!("{style}{text}{style:#}")
        } else {
            text.to_string()
        }
    }
}

/// The two streams of a command.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) painter: Painter,
    talk: Painter,
}

impl Output {
    pub(crate) fn new(global: &Global) -> Self {
        let allowed = !global.no_color
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            json: global.json,
            painter: Painter {
                colors: allowed && std::io::stdout().is_terminal(),
            },
            talk: Painter {
                colors: allowed && std::io::stderr().is_terminal(),
            },
        }
    }

    /// Data, as it is.
    pub(crate) fn data(&self, text: &str) {
        let mut stdout = std::io::stdout().lock();
        let printed = stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush());
        if printed.is_err() {
            // Whoever read it has what it wanted.
            std::process::exit(0);
        }
    }

    /// Data as JSON.
    pub(crate) fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        self.data(&format!("{text}\n"));
        Ok(())
    }

    /// Talk for a person.
    pub(crate) fn talk(&self, text: &str) {
        eprintln!("{text}");
    }

    /// A failed command: what happened, to what, and what to do. With `--json` also as JSON.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        let (happened, action) = match (
            error.downcast_ref::<ApiError>(),
            error.downcast_ref::<Unreachable>(),
        ) {
            (Some(refused), _) => {
                if self.json {
                    // What cannot be encoded is still told in words below.
                    let _ = self.json(&ErrorBody::from(refused.clone()));
                }
                (refused.to_string(), refused.action.clone())
            }
            (_, Some(unreachable)) => (unreachable.to_string(), unreachable.action.clone()),
            _ => (format!("{error:#}"), String::new()),
        };
        self.talk(&format!(
            "{} {happened}",
            self.talk.paint(Tone::Bad, "error:")
        ));
        if !action.is_empty() {
            self.talk(&format!(
                "{} {action}",
                self.talk.paint(Tone::Strong, "do:")
            ));
        }
    }
}
