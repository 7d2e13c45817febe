//! Rust text as the checkers read it: code alone, the literals aside, tests cut out, every path with
//! its line.

/// A text taken apart. Lines keep their numbers.
#[derive(Debug)]
pub(crate) struct Code {
    /// Comments are gone and literals are empty.
    pub(crate) text: String,
    /// What stood in the string literals, escapes as written.
    pub(crate) literals: Vec<(usize, String)>,
}

/// Takes a text apart.
pub(crate) fn code(source: &str) -> Code {
    let chars: Vec<char> = source.chars().collect();
    let starts = |at: usize, what: &str| {
        what.chars().enumerate().all(|(n, c)| chars.get(at + n) == Some(&c))
    };
    let mut code = Code { text: String::with_capacity(source.len()), literals: Vec::new() };
    let mut at = 0;
    while at < chars.len() {
        let begin = at;
        if starts(at, "//") {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
        } else if starts(at, "/*") {
            let mut depth = 0;
            loop {
                let step = if starts(at, "/*") {
                    depth += 1;
                    2
                } else if starts(at, "*/") {
                    depth -= 1;
                    2
                } else {
                    1
                };
                at += step;
                if depth == 0 || at >= chars.len() {
                    break;
                }
            }
            keep_lines(&mut code.text, &chars, begin, at);
        } else if let Some(hashes) = raw_string(&chars, at) {
            let close = format!("\"{}", "#".repeat(hashes));
            let open = at + chars[at..].iter().position(|c| *c == '"').unwrap_or(0) + 1;
            at = open;
            while at < chars.len() && !starts(at, &close) {
                at += 1;
            }
            code.literal(&chars, open, at);
            at += close.len();
        } else if chars[at] == '"' {
            at += 1;
            while at < chars.len() && chars[at] != '"' {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            code.literal(&chars, begin + 1, at.min(chars.len()));
            at += 1;
        } else if chars[at] == '\'' && (starts(at + 1, "\\") || starts(at + 2, "'")) {
            at += if starts(at + 1, "\\") { 3 } else { 2 };
            while at < chars.len() && chars[at] != '\'' {
                at += 1;
            }
            at += 1;
            code.text.push_str("' '");
        } else {
            code.text.push(chars[at]);
            at += 1;
            // A word goes as a whole, so that its last letter does not open a raw string.
            while is_word(chars[begin]) && chars.get(at).copied().is_some_and(is_word) {
                code.text.push(chars[at]);
                at += 1;
            }
        }
    }
    code
}

impl Code {
    fn literal(&mut self, chars: &[char], from: usize, to: usize) {
        let line = line_of(&self.text, self.text.len());
        self.literals.push((line, chars[from..to].iter().collect()));
        self.text.push('"');
        keep_lines(&mut self.text, chars, from, to);
        self.text.push('"');
    }
}

/// Cuts out the items under `#[cfg(test)]`.
pub(crate) fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some((before, item)) = rest.split_once(MARK) {
        kept.push_str(before);
        let mut depth = 0_i32;
        let end = item.char_indices().find(|(_, c)| {
            depth += match c {
                '{' | '(' | '[' => 1,
                '}' | ')' | ']' => -1,
                _ => 0,
            };
            depth < 0 || (depth == 0 && matches!(c, '}' | ';'))
        });
        let end = end.map_or(item.len(), |(at, _)| at + 1);
        kept.extend(item[..end].chars().filter(|c| *c == '\n'));
        rest = &item[end..];
    }
    kept + rest
}

/// Every path of two segments or more, and every path that a `use` brings in, with its line. A
/// renamed import counts as all that is below it: `a::b as c` is `a::b::*`.
pub(crate) fn paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = code[at..].find(|c: char| c.is_alphabetic() || c == '_') {
        let start = at + start;
        let end = start + word_bytes(&code[start..]);
        let line = line_of(code, start);
        let word = &code[start..end];
        if word == "use" && code[end..].starts_with(char::is_whitespace) {
            at = code[end..].find(';').map_or(code.len(), |semicolon| end + semicolon);
            let mut tree = Vec::new();
            expand("", &code[end..at], &mut tree);
            found.extend(tree.into_iter().map(|path| (line, path)));
            continue;
        }
        if word == "extern" && code[end..].trim_start().starts_with("crate ") {
            let name = code[end..].trim_start()["crate ".len()..].trim_start();
            found.push((line, format!("{}::*", &name[..word_bytes(name)])));
        }
        let mut path = word.to_owned();
        at = end;
        while let Some(more) = code[at..].strip_prefix("::") {
            let bytes = word_bytes(more);
            if bytes == 0 {
                break;
            }
            path = format!("{path}::{}", &more[..bytes]);
            at += 2 + bytes;
        }
        if path.len() > word.len() {
            found.push((line, path));
        }
    }
    found
}

/// One `use` tree, flat.
fn expand(prefix: &str, tree: &str, found: &mut Vec<String>) {
    let tree = tree.trim().trim_start_matches("::");
    if let Some((head, group)) = tree.split_once('{') {
        let prefix = format!("{prefix}{}", head.trim());
        let (mut depth, mut from) = (0, 0);
        let group = group.trim_end().trim_end_matches('}');
        for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    expand(&prefix, &group[from..at], found);
                    from = at + 1;
                }
                _ => {}
            }
        }
        return;
    }
    let (path, renamed) = match tree.split_once(" as ") {
        Some((path, _)) => (path.trim(), true),
        None => (tree, false),
    };
    if !path.is_empty() {
        let full = format!("{prefix}{path}");
        let full = full.strip_suffix("::self").unwrap_or(&full);
        found.push(if renamed { format!("{full}::*") } else { full.to_owned() });
    }
}

/// How many hashes a raw string has that begins here.
fn raw_string(chars: &[char], at: usize) -> Option<usize> {
    let rest = &chars[at..];
    let prefix = match rest {
        ['r', ..] => 1,
        ['b' | 'c', 'r', ..] => 2,
        _ => return None,
    };
    let hashes = rest[prefix..].iter().take_while(|c| **c == '#').count();
    (rest.get(prefix + hashes) == Some(&'"')).then_some(hashes)
}

fn keep_lines(text: &mut String, chars: &[char], from: usize, to: usize) {
    text.extend(chars[from..to.min(chars.len())].iter().filter(|c| **c == '\n'));
}

fn word_bytes(text: &str) -> usize {
    text.find(|c| !is_word(c)).unwrap_or(text.len())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The number of the line that this byte is on.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

#[test]
fn comments_and_literals_are_no_code() {
    let source = "a /* b /* c */ d */ \"e \\\" f\" 'g' '\\'' r#\"h \" i\"# &'j k // l\nbr\"m\" n";

    let read = code(source);

    assert_eq!(read.text, "a  \"\" ' ' ' ' \"\" &'j k \n\"\" n");
    let literals = [(1, "e \\\" f".into()), (1, "h \" i".into()), (2, "m".into())];
    assert_eq!(read.literals, literals);
}

#[test]
fn test_modules_are_cut_out_and_lines_stay() {
    let source =
        "a;\n#[cfg(test)]\n#[path = \"\"]\nmod tests;\nb;\n#[cfg(test)]\nmod t {\n { c; }\n}\nd;";

    let kept = without_tests(source);

    assert_eq!(kept.split_whitespace().collect::<Vec<_>>(), ["a;", "b;", "d;"]);
    assert_eq!(kept.lines().count(), source.lines().count());
}

#[test]
fn every_way_to_name_a_path_is_seen() {
    let source = "use a::{self, b::{c, d as e}, f::*};\npub use g;\nlet x: Vec<::h::i> = j::k::<l::m>();\
                  \nextern crate n as o;";

    let found = paths(source);

    let found: Vec<&str> = found.iter().map(|(_, path)| path.as_str()).collect();
    let expected = ["a", "a::b::c", "a::b::d::*", "a::f::*", "g", "h::i", "j::k", "l::m", "n::*"];
    assert_eq!(found, expected);
    assert_eq!(paths(source)[5].0, 3);
}
