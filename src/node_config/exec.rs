//! Command lines of systemd units.
//!
//! systemd splits `ExecStart=` at blanks, takes quotes and escapes of C away, then expands `%` (specifiers) and, when it
//! starts the program, `$` (variables); both stand for themselves when they are doubled.

use std::{iter::Peekable, str::Chars};

/// An argument as `ExecStart=` takes it. What needs no quotes gets none.
pub fn quote(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        return argument.to_owned();
    }
    let mut text = String::from('"');
    for c in argument.chars() {
        match c {
            '\\' | '"' => text.extend(['\\', c]),
            '%' | '$' => text.extend([c, c]),
            // Validation refuses these; here they could at least not end the line.
            c if c.is_ascii_control() => text.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

/// The arguments of a command line, as the program would get them: the inverse of [`quote`].
///
/// `None` if systemd would refuse the line, or if what it makes of it depends on anything but the line.
pub fn split(line: &str) -> Option<Vec<String>> {
    // Lines are joined before anything else is looked at.
    let line = line.replace("\\\n", " ");
    let mut rest = line.chars().peekable();
    let mut words = Vec::new();
    loop {
        while rest.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        if rest.peek().is_none() {
            return Some(words);
        }
        let word = undoubled(&unquoted(&mut rest)?, '%')?;
        words.push(undoubled(&word, '$')?);
    }
}

/// Takes one word from the front, and its quotes and escapes away.
fn unquoted(rest: &mut Peekable<Chars>) -> Option<String> {
    let mut word = String::new();
    let mut quote = None;
    while let Some(&c) = rest.peek() {
        if quote.is_none() && c.is_ascii_whitespace() {
            break;
        }
        rest.next();
        match c {
            '\\' => word.push(unescaped(rest)?),
            '"' | '\'' if quote.is_none() => quote = Some(c),
            c if quote == Some(c) => quote = None,
            c => word.push(c),
        }
    }
    quote.is_none().then_some(word)
}

fn unescaped(rest: &mut Peekable<Chars>) -> Option<char> {
    Some(match rest.next()? {
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        's' => ' ',
        'x' => {
            let digits: String = [rest.next()?, rest.next()?].into_iter().collect();
            char::from(u8::from_str_radix(&digits, 16).ok()?)
        }
        c @ ('\\' | '"' | '\'') => c,
        _ => return None,
    })
}

/// The text with every pair of `sign` as one. `None` if there is one alone, which would be expanded.
fn undoubled(text: &str, sign: char) -> Option<String> {
    let mut plain = String::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c == sign && rest.next() != Some(sign) {
            return None;
        }
        plain.push(c);
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_special_to_systemd_is_quoted() {
        let cases = [
            ("--secure-port=6443", "--secure-port=6443"),
            ("--name=master-0=https://172.26.0.10:2380", "--name=master-0=https://172.26.0.10:2380"),
            ("", r#""""#),
            ("--x=", "--x="),
            ("--x=a b", r#""--x=a b""#),
            (r#"--x="a" 'b'"#, r#""--x=\"a\" 'b'""#),
            (r"--x=C:\new", r#""--x=C:\\new""#),
            ("--x=%n%%", r#""--x=%%n%%%%""#),
            ("--x=${HOME} $HOME", r#""--x=$${HOME} $$HOME""#),
            ("--x=; rm -rf /", r#""--x=; rm -rf /""#),
            ("--x=# no comment \\", r#""--x=# no comment \\""#),
            ("--x=a\nExecStartPre=/bin/sh", r#""--x=a\x0aExecStartPre=/bin/sh""#),
        ];
        for (argument, quoted) in cases {
            assert_eq!(quote(argument), quoted);
            assert_eq!(split(quoted).unwrap(), [argument]);
        }
    }

    #[test]
    fn what_systemd_would_expand_or_refuse_is_no_command_line_of_ours() {
        for line in ["a %n", "a $HOME", r#"a "b"#, "a 'b", r"a \q", r"a \", r#"a "${X}""#] {
            assert_eq!(split(line), None, "{line}");
        }
        assert_eq!(split("a \\\n  'b \"c' \"d\"\n").unwrap(), ["a", "b \"c", "d"]);
    }

    proptest! {
        #[test]
        fn the_program_gets_what_was_meant(
            printable in proptest::collection::vec("[ -~]{0,40}", 0..6),
            nasty in proptest::collection::vec(r#"[-a=\\"'$%{}; #\n\t]{0,12}"#, 0..6),
        ) {
            let argv: Vec<String> = printable.into_iter().chain(nasty).collect();
            let line: Vec<_> = argv.iter().map(|argument| quote(argument)).collect();
            prop_assert!(line.iter().all(|word| !word.contains('\n')));
            // As units are written: one argument a line.
            prop_assert_eq!(split(&line.join(" \\\n  ")), Some(argv));
        }
    }
}
