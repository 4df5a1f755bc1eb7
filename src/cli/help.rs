//! What tells people and shells about the command line.

use std::{
    io::{self, Write as _},
    path::Path,
};

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Args, Failure};

/// What a file on the PATH is called that kubectl runs as `kubectl g8s`.
const PLUGIN: &str = "kubectl-g8s";

/// The command, as it is called by who was called by this name.
pub(super) fn command(called: Option<&str>) -> clap::Command {
    let name = called.and_then(|path| Path::new(path).file_name());
    match name.and_then(|name| name.to_str()) {
        Some(PLUGIN) => Args::command().bin_name("kubectl g8s"),
        _ => Args::command(),
    }
}

/// Prints completions.
pub(super) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "giantnetes", &mut text);
    Ok(io::stdout().write_all(&text)?)
}

/// Writes a page for the command and for each of its subcommands.
pub(super) fn man(folder: &Path) -> Result<(), Failure> {
    clap_mangen::generate_to(Args::command(), folder)
        .map_err(|error| format!("write the manual into {}: {error}", folder.display()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_told_by_the_name_that_people_type() {
        let usage = |called| command(Some(called)).render_usage().to_string();
        assert!(usage("/usr/local/bin/kubectl-g8s").contains("kubectl g8s [OPTIONS] <COMMAND>"));
        assert!(usage("giantnetes").contains("giantnetes [OPTIONS] <COMMAND>"));
    }

    #[test]
    fn every_subcommand_has_a_page_and_every_shell_is_told_of_it() {
        let folder = std::env::temp_dir().join(format!("giantnetes-man-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        man(&folder).unwrap();
        let command = command(None);
        let shown = command.get_subcommands().filter(|one| !one.is_hide_set());
        let names: Vec<_> = shown.map(|one| one.get_name().to_owned()).collect();
        assert!(names.len() > 10, "{names:?}");
        for name in &names {
            let page = std::fs::read_to_string(folder.join(format!("giantnetes-{name}.1"))).unwrap();
            assert!(page.contains(".SH SYNOPSIS"), "{name}: {page}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
        for shell in <Shell as clap::ValueEnum>::value_variants() {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Args::command(), "giantnetes", &mut text);
            let text = String::from_utf8(text).unwrap();
            let lacks: Vec<_> = names.iter().filter(|name| !text.contains(name.as_str())).collect();
            assert!(lacks.is_empty(), "{shell}: {lacks:?}");
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        command(None).debug_assert();
    }
}
