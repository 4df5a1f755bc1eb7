//! Lines and branches.

/// A line of text with others that hang on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Branch {
    /// What the line says.
    pub text: String,
    /// What hangs on it.
    pub under: Vec<Branch>,
}

impl Branch {
    /// A line with nothing under it.
    pub(super) fn leaf(text: impl Into<String>) -> Self {
        Self { text: text.into(), under: Vec::new() }
    }

    /// A line with others under it.
    pub(super) fn of(text: impl Into<String>, under: impl IntoIterator<Item = Self>) -> Self {
        Self { text: text.into(), under: under.into_iter().collect() }
    }
}

/// The tree that hangs on `root`.
pub(super) fn draw(root: &Branch) -> String {
    let mut lines = vec![root.text.clone()];
    hang(&root.under, "", &mut lines);
    lines.join("\n") + "\n"
}

fn hang(branches: &[Branch], indent: &str, lines: &mut Vec<String>) {
    for (number, branch) in branches.iter().enumerate() {
        let is_last = number + 1 == branches.len();
        let (elbow, below) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        lines.push(format!("{indent}{elbow}{}", branch.text));
        hang(&branch.under, &format!("{indent}{below}"), lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_hang_on_their_line() {
        let root = Branch::of("a", [Branch::of("b", [Branch::leaf("c")]), Branch::of("d", [Branch::leaf("e")])]);
        assert_eq!(draw(&root), "a\n├─ b\n│  └─ c\n└─ d\n   └─ e\n");
    }
}
