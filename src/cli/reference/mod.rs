//! `giantnetes reference`: the tables of docs/reference.md and docs/api.md, and the whole of docs/fields.md, from the code.
//!
//! In a document a table stands between `<!-- table: NAME -->` and `<!-- end -->`; what is around it is written by hand.

mod commands;
mod conditions;
mod fields;
mod marks;
mod ports;

use std::path::PathBuf;

use super::Failure;

/// Arguments of `giantnetes reference`.
#[derive(Debug, clap::Args)]
pub(super) struct ReferenceArgs {
    /// Print this document with its tables as they are now. Default: the page of all fields.
    document: Option<PathBuf>,
}

/// Prints a document.
pub(super) fn reference(args: &ReferenceArgs) -> Result<(), Failure> {
    let text = match &args.document {
        None => fields::page(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))?;
            with_tables(&text).map_err(|error| format!("{}: {error}", path.display()))?
        }
    };
    print!("{text}");
    Ok(())
}

/// A table of a document.
struct Table {
    head: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Table {
    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | ")).replace("|  |", "| |");
        let head: Vec<_> = self.head.iter().map(|&cell| cell.to_owned()).collect();
        let under = "|---".repeat(self.head.len());
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("{}{under}|\n{rows}", line(&head))
    }
}

/// A word as code.
fn code(word: &&str) -> String {
    format!("`{word}`")
}

/// What stands between the marks of this name.
fn part(name: &str) -> Option<String> {
    let table = match name {
        "labels" => marks::labels(),
        "annotations" => marks::annotations(),
        "ports" => ports::ports(),
        "conditions" => conditions::types(),
        "reasons" => conditions::reasons(),
        "reason names" => return Some(conditions::reason_names()),
        "commands for pods" => commands::for_pods(),
        "commands for people" => commands::for_people(),
        _ => return None,
    };
    Some(table.markdown())
}

const END: &str = "<!-- end -->\n";

/// A document with its tables as they are now.
fn with_tables(text: &str) -> Result<String, String> {
    let mut whole = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("<!-- table: ") {
        let (name, after) = after.split_once(" -->\n").ok_or("a mark has no end of its line")?;
        let (_, after) = after.split_once(END).ok_or_else(|| format!("table {name} has no {END}"))?;
        let part = part(name).ok_or_else(|| format!("there is no table {name}"))?;
        whole += &format!("{before}<!-- table: {name} -->\n{}\n{END}", part.trim_end());
        rest = after;
    }
    Ok(whole + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(name: &str) -> String {
        std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)).unwrap()
    }

    #[test]
    fn documents_hold_the_tables_of_the_code() {
        for (name, tables) in [("reference.md", 6), ("api.md", 2)] {
            let text = document(name);
            assert_eq!(text.matches("<!-- table: ").count(), tables, "{name}");
            assert!(text == with_tables(&text).unwrap(), "docs/{name} is stale: `make docs` writes it");
        }
        assert!(document("fields.md") == fields::page(), "docs/fields.md is stale: `make docs` writes it");
    }

    #[test]
    fn a_table_is_replaced_and_what_is_around_it_stays() {
        let text = "a\n<!-- table: reason names -->\nold\n<!-- end -->\nb\n";
        let now = with_tables(text).unwrap();
        assert!(
            now.starts_with("a\n<!-- table: reason names -->\n`AsExpected`, ") && now.ends_with("\n<!-- end -->\nb\n")
        );
        assert_eq!(with_tables(&now).unwrap(), now);
        assert!(with_tables("<!-- table: nonsense -->\n<!-- end -->\n").unwrap_err().contains("nonsense"));
        assert!(with_tables("<!-- table: ports -->\n").unwrap_err().contains("has no"));
    }

    #[test]
    fn no_cell_breaks_its_table() {
        for table in
            [marks::labels(), marks::annotations(), ports::ports(), commands::for_pods(), commands::for_people()]
        {
            assert!(table.rows.len() > 4);
            for row in &table.rows {
                assert_eq!(row.len(), table.head.len(), "{row:?}");
                assert!(row.iter().all(|cell| !cell.contains(['\n', '|'])), "{row:?}");
            }
        }
    }
}
