//! The command line as documents: reference page, man pages, completions.
//!
//! Owns the forms; the content comes from the arguments' definition.

use crate::args::Arguments;
use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;
use std::path::Path;

/// A completion script.
pub(crate) fn completions(shell: Shell) -> anyhow::Result<String> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "blkctl", &mut script);
    String::from_utf8(script).context("the completion script is no text")
}

/// Writes `blkctl.1` and a page for each command.
pub(crate) fn man_pages(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    clap_mangen::generate_to(Arguments::command(), dir)
        .with_context(|| format!("write man pages into {}", dir.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::{Arg, Command};
    use std::fmt::Write as _;

    /// The reference page.
    fn markdown() -> String {
        let mut command = Arguments::command();
        command.build();
        let mut page = String::from(
            "# blkctl\n\nGenerated from the code. Data goes to standard output, talk to standard \
             error. Exit codes: 0 done, 1 a condition was\nfound (`status`: a warning or an error; \
             `doctor`: something does not work; `--wait`: not equal), 2 error.\n\
             Sizes are written `64KiB`, rates `100MiB/s`, times `5s`.\n\n## Options of every \
             command\n\n",
        );
        let global = command.get_arguments().filter(|arg| arg.is_global_set());
        options(&mut page, global);
        for inner in visible(&command) {
            section(&mut page, inner, "blkctl");
        }
        page
    }

    fn visible(command: &Command) -> impl Iterator<Item = &Command> {
        let all = command.get_subcommands();
        all.filter(|inner| !inner.is_hide_set() && inner.get_name() != "help")
    }

    fn section(page: &mut String, command: &Command, parent: &str) {
        let name = format!("{parent} {}", command.get_name());
        let own = || command.get_arguments().filter(|arg| !arg.is_global_set());
        if command.has_subcommands() {
            for inner in visible(command) {
                section(page, inner, &name);
            }
            return;
        }
        let mut usage = name;
        for arg in own().filter(|arg| arg.is_positional()) {
            let value = value_of(arg);
            let value = if arg.is_required_set() {
                value
            } else {
                format!("[{value}]")
            };
            write!(usage, " {value}").unwrap();
        }
        if own().any(|arg| !arg.is_positional() && arg.get_id() != "help") {
            usage.push_str(" [OPTIONS]");
        }
        let about = command.get_about().unwrap();
        write!(page, "\n## `{usage}`\n\n{about}.\n\n").unwrap();
        options(page, own());
    }

    fn options<'a>(page: &mut String, args: impl Iterator<Item = &'a Arg>) {
        for arg in args.filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version")) {
            let long = arg.get_long().map(|long| format!("--{long}"));
            let takes = arg.get_action().takes_values();
            let name = match long {
                Some(long) if takes => format!("{long} {}", value_of(arg)),
                Some(long) => long,
                None => value_of(arg),
            };
            let help = arg.get_help().unwrap();
            let defaults = arg.get_default_values().iter();
            let defaults: Vec<_> = defaults.map(|value| value.to_string_lossy()).collect();
            let default = match (takes, defaults.join(", ")) {
                (true, text) if !text.is_empty() => format!(" Default: `{text}`."),
                _ => String::new(),
            };
            let required = match arg.is_required_set() && !arg.is_positional() {
                true => " Required.",
                false => "",
            };
            writeln!(page, "- `{name}`: {help}.{default}{required}").unwrap();
        }
    }

    fn value_of(arg: &Arg) -> String {
        let names = arg.get_value_names().unwrap_or_default();
        names.first().map_or_else(
            || arg.get_id().as_str().to_uppercase(),
            |name| name.to_string().to_uppercase(),
        )
    }

    #[test]
    fn the_reference_page_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/blkctl.md");
        let text = markdown();
        if std::env::var_os("BLKREP_BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert!(
            std::fs::read_to_string(&path).unwrap_or_default() == text,
            "docs/reference/blkctl.md is stale: run the test with BLKREP_BLESS=1"
        );
    }

    #[test]
    fn man_pages_and_completions_are_made() {
        let dir = tempfile::tempdir().unwrap();
        man_pages(dir.path()).unwrap();
        let page = std::fs::read_to_string(dir.path().join("blkctl-attach.1")).unwrap();
        assert!(page.contains("backing"));
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            assert!(completions(shell).unwrap().contains("disconnect"));
        }
    }
}
