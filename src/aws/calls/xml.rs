//! XML as the query protocol answers with it: elements with text or elements in them. Pure.

use xmlparser::{ElementEnd, Token, Tokenizer};

/// Deepest nesting that is read: answers have about eight.
const DEEPEST: usize = 64;

/// An element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Element {
    pub name: String,
    pub text: String,
    pub children: Vec<Element>,
}

impl Element {
    /// The one element that a document is. None: it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (mut open, mut root) = (Vec::<Self>::new(), None);
        let close = |open: &mut Vec<Self>, root: &mut Option<Self>| {
            let Some(element) = open.pop() else { return };
            match open.last_mut() {
                Some(parent) => parent.children.push(element),
                None => *root = Some(element),
            }
        };
        for token in Tokenizer::from(text) {
            match token.ok()? {
                Token::ElementStart { local, .. } if open.len() < DEEPEST => {
                    open.push(Self { name: local.as_str().to_owned(), ..Self::default() });
                }
                Token::ElementStart { .. } => return None,
                Token::ElementEnd { end: ElementEnd::Close(..) | ElementEnd::Empty, .. } => close(&mut open, &mut root),
                Token::Text { text } => {
                    if let Some(element) = open.last_mut() {
                        element.text.push_str(&plain(text.as_str()));
                    }
                }
                _ => {}
            }
        }
        root.filter(|_| open.is_empty())
    }

    /// The first element of this name in it, however deep.
    pub fn first(&self, name: &str) -> Option<&Self> {
        let deeper = |child| Self::first(child, name);
        if self.name == name { Some(self) } else { self.children.iter().find_map(deeper) }
    }

    /// Elements of the list of this name, wherever it is.
    pub fn list(&self, name: &str) -> &[Self] {
        self.first(name).map(|list| list.children.as_slice()).unwrap_or_default()
    }

    /// Text of a child.
    pub fn of(&self, name: &str) -> &str {
        self.children.iter().find(|child| child.name == name).map_or("", |child| child.text.trim())
    }
}

/// Text without the entities that XML has of itself.
fn plain(text: &str) -> String {
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    entities.iter().fold(text.to_owned(), |text, (entity, letter)| text.replace(entity, letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_it_nests() {
        let text = "<?xml version=\"1.0\"?>\n<R xmlns=\"a\"><volumeSet>\n<item><volumeId>vol-1</volumeId><tagSet><item><key>a&amp;b</key></item></tagSet></item>\
                    <item><volumeId>vol-2</volumeId><tagSet/></item></volumeSet><nextToken>x</nextToken></R>";
        let read = Element::parse(text).unwrap();
        let ids: Vec<_> = read.list("volumeSet").iter().map(|item| item.of("volumeId")).collect();
        assert_eq!(ids, ["vol-1", "vol-2"]);
        assert_eq!(read.list("volumeSet")[0].list("tagSet")[0].of("key"), "a&b");
        assert_eq!((read.of("nextToken"), read.of("none")), ("x", ""));
        for torn in ["", "<a>", "<a><b></a", "text", "{}"] {
            assert_eq!(Element::parse(torn), None, "{torn}");
        }
        assert_eq!(Element::parse(&"<a>".repeat(1000)), None);
    }
}
