//! What the reference says of the command line, from what reads it.

use clap::{Arg, ArgAction, Command, CommandFactory as _};

use super::Table;
use crate::cli::Args;

/// Subcommands that pods run, and hosts.
const FOR_PODS: [&str; 7] = ["run", "supervise", "flannel", "device-plugin", "node-agent", "check", "probe"];
/// What every command with a NAME takes, and the text says once.
const COMMON: [&str; 3] = ["namespace", "context", "kubeconfig"];

/// Those that pods run.
pub(super) fn for_pods() -> Table {
    table(|name| FOR_PODS.contains(&name))
}

/// Those that people type.
pub(super) fn for_people() -> Table {
    table(|name| !FOR_PODS.contains(&name))
}

fn table(wanted: impl Fn(&str) -> bool) -> Table {
    let whole = Args::command();
    let mut rows = Vec::new();
    for command in whole.get_subcommands().filter(|command| wanted(command.get_name())) {
        let nested: Vec<_> = command.get_subcommands().collect();
        if nested.is_empty() {
            rows.push(row(command.get_name(), command));
        }
        rows.extend(nested.iter().map(|one| row(&format!("{} {}", command.get_name(), one.get_name()), one)));
    }
    Table { head: &["Command", "Does", "Flags and environment"], rows }
}

fn row(name: &str, command: &Command) -> Vec<String> {
    let positional: String = command.get_positionals().map(|arg| format!(" {}", positional(arg))).collect();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let has_name = command.get_positionals().any(|arg| arg.get_id() == "name");
    let told = |arg: &&Arg| {
        let id = arg.get_id().as_str();
        let by_clap = matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpLong | ArgAction::Version);
        !(by_clap || arg.is_positional() || arg.is_global_set() || has_name && COMMON.contains(&id))
    };
    let flags: Vec<_> = command.get_arguments().filter(told).map(flag).collect();
    vec![format!("`{name}{positional}`"), about, flags.join(", ")]
}

fn positional(arg: &Arg) -> String {
    let name = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    let name = name.unwrap_or_else(|| arg.get_id().as_str().to_uppercase());
    if arg.is_required_set() { name } else { format!("[{name}]") }
}

/// A flag, the variable that it may come from, and its default.
fn flag(arg: &Arg) -> String {
    let long = match (arg.get_long(), arg.get_short()) {
        (Some(long), _) => format!("`--{long}`"),
        (None, short) => format!("`-{}`", short.unwrap_or_default()),
    };
    let variable = arg.get_env().map(|name| format!("`{}`", name.to_string_lossy()));
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    let default = (arg.get_action().takes_values() && !defaults.is_empty()).then(|| defaults.join(" "));
    let more: Vec<_> = variable.into_iter().chain(default).collect();
    if more.is_empty() { long } else { format!("{long} ({})", more.join(", ")) }
}
