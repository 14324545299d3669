//! One page of a listing, as XML.
//!
//! Elements are found by where they are in the document. What else there is (other elements, attributes) is
//! passed over; what would make the page another one than the server meant is refused.

use std::str;

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use quick_xml::Reader;
use quick_xml::events::{BytesRef, BytesStart, Event};

use crate::codec::percent::percent_decode;
use crate::error::Result;
use crate::store::remote::fault::Fault;
use crate::store::remote::names::{Listed, Names};
use crate::store::remote::object::{is_empty_etag, meta};

/// Keys with size, ETag and time, or prefixes without.
pub(super) struct Page {
    items: Vec<(String, Option<Blob>)>,
    /// Where the next page starts; empty on the last one.
    pub(super) next: String,
}

struct Blob {
    size: u64,
    etag: String,
    modified: Option<DateTime>,
}

/// What is known of a blob or a prefix before its end.
#[derive(Default)]
struct Draft {
    name: Option<String>,
    size: Option<u64>,
    etag: Option<String>,
    modified: Option<DateTime>,
}

fn bad(what: &str) -> Fault {
    Fault::protocol(format!("the listing {what}"))
}

fn malformed() -> Fault {
    bad("is malformed")
}

impl Page {
    pub(super) fn parse(xml: &[u8]) -> Result<Self, Fault> {
        let text = str::from_utf8(xml).map_err(|_| bad("is not text"))?;
        let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
        reader.config_mut().expand_empty_elements = true;
        let mut parser = Parser::default();
        loop {
            match reader.read_event().map_err(|_| malformed())? {
                Event::Start(element) => parser.begin(&element)?,
                Event::End(_) => parser.end()?,
                Event::Text(text) => parser.text(&text.decode().map_err(|_| malformed())?)?,
                Event::CData(text) => parser.text(&text.decode().map_err(|_| malformed())?)?,
                Event::GeneralRef(reference) => parser.text(&character(&reference)?)?,
                Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
                // Without these, a name in angle brackets is always that element.
                Event::DocType(_) => return Err(bad("is written in a way that cannot be read")),
                // Empty ones come as a start and an end.
                Event::Empty(_) => return Err(malformed()),
                Event::Eof => return parser.finish(),
            }
        }
    }

    pub(super) fn add_to(&self, names: &mut Names, prefix: &str) -> Result<()> {
        for (key, blob) in &self.items {
            let listed = match blob {
                None => Listed::Prefix,
                Some(blob) => {
                    let modified = blob.modified.as_ref();
                    let known = !is_empty_etag(&blob.etag);
                    Listed::Object {
                        size: blob.size,
                        meta: known.then(|| meta(blob.size, Some(&blob.etag), modified)),
                    }
                }
            };
            names.add(prefix, key, listed)?;
        }
        Ok(())
    }
}

/// What `&…;` stands for.
fn character(reference: &BytesRef<'_>) -> Result<String, Fault> {
    if let Some(number) = reference.resolve_char_ref().map_err(|_| malformed())? {
        return Ok(number.into());
    }
    let name = reference.decode().map_err(|_| malformed())?;
    quick_xml::escape::resolve_predefined_entity(&name)
        .map(str::to_owned)
        .ok_or_else(malformed)
}

#[derive(Default)]
struct Parser {
    /// The elements that are open, outermost first.
    open: Vec<String>,
    /// The text since the last tag.
    text: String,
    /// Whether the name that is open is percent-encoded: there are names that XML cannot hold.
    is_encoded: bool,
    draft: Draft,
    items: Vec<(String, Option<Blob>)>,
    next: Option<String>,
    is_complete: bool,
}

impl Parser {
    fn begin(&mut self, element: &BytesStart<'_>) -> Result<(), Fault> {
        let name = str::from_utf8(element.local_name().into_inner()).map_err(|_| malformed())?;
        if self.is_complete || self.open.is_empty() && name != "EnumerationResults" {
            return Err(malformed());
        }
        let mut is_encoded = false;
        for attribute in element.attributes() {
            let attribute = attribute.map_err(|_| malformed())?;
            let is_it = attribute.key.local_name().as_ref() == b"Encoded";
            is_encoded |= is_it && *attribute.value == *b"true";
        }
        self.is_encoded = is_encoded;
        if matches!(name, "Blob" | "BlobPrefix") {
            self.draft = Draft::default();
        }
        self.open.push(name.to_owned());
        self.text.clear();
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Fault> {
        if self.open.is_empty() && !text.trim().is_empty() {
            return Err(malformed());
        }
        self.text.push_str(text);
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fault> {
        let text = std::mem::take(&mut self.text);
        let open: Vec<&str> = self.open.iter().map(String::as_str).collect();
        match open[..] {
            ["EnumerationResults"] => self.is_complete = true,
            ["EnumerationResults", "NextMarker"] => set(&mut self.next, text)?,
            ["EnumerationResults", "Blobs", ref within @ ..] => match *within {
                ["Blob"] => {
                    let draft = std::mem::take(&mut self.draft);
                    let name = draft.name.ok_or_else(|| bad("has a blob without a name"))?;
                    let blob = Blob {
                        size: draft
                            .size
                            .ok_or_else(|| bad("has a blob without its size"))?,
                        etag: draft.etag.unwrap_or_default(),
                        modified: draft.modified,
                    };
                    self.items.push((name, Some(blob)));
                }
                ["BlobPrefix"] => {
                    let draft = std::mem::take(&mut self.draft);
                    let name = draft
                        .name
                        .ok_or_else(|| bad("has a prefix without a name"))?;
                    self.items.push((name, None));
                }
                ["Blob" | "BlobPrefix", "Name"] => {
                    let name = match self.is_encoded {
                        true => percent_decode(&text, false)
                            .ok_or_else(|| bad("has a name with a broken encoding"))?,
                        false => text,
                    };
                    set(&mut self.draft.name, name)?;
                }
                ["Blob", "Properties", "Content-Length"] => {
                    let size = text
                        .parse()
                        .map_err(|_| bad("has a blob without its size"))?;
                    set(&mut self.draft.size, size)?;
                }
                ["Blob", "Properties", "Etag"] => set(&mut self.draft.etag, text)?,
                ["Blob", "Properties", "Last-Modified"] => {
                    self.draft.modified = DateTime::from_str(&text, Format::HttpDate).ok();
                }
                _ => {}
            },
            _ => {}
        }
        self.open.pop();
        Ok(())
    }

    fn finish(self) -> Result<Page, Fault> {
        if !self.is_complete {
            return Err(bad("was cut short"));
        }
        Ok(Page {
            items: self.items,
            next: self
                .next
                .ok_or_else(|| bad("does not tell whether it is complete"))?,
        })
    }
}

/// Of an element that comes twice, neither can be believed.
fn set<T>(place: &mut Option<T>, value: T) -> Result<(), Fault> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\u{feff}<?xml version=\"1.0\"?><EnumerationResults><Blobs><Blob><Name>d/a&amp;b\
        &#xE9;</Name><Properties><Etag>0x1</Etag><Content-Length>5</Content-Length></Properties>\
        </Blob><BlobPrefix><Name>d/sub/</Name></BlobPrefix></Blobs><NextMarker>m&lt;</NextMarker>\
        </EnumerationResults>";

    fn names(page: &str) -> Vec<String> {
        let mut names = Names::default();
        let page = Page::parse(page.as_bytes()).unwrap();
        page.add_to(&mut names, "d/").unwrap();
        let entries = names.into_entries("d/").unwrap();
        let mut names: Vec<String> = entries.into_iter().map(|entry| entry.name).collect();
        names.sort();
        names
    }

    #[test]
    fn pages_are_read_and_cut_ones_refused() {
        assert_eq!(Page::parse(PAGE.as_bytes()).unwrap().next, "m<");
        assert_eq!(names(PAGE), ["a&bé", "sub"]);
        for cut in 0..PAGE.len() {
            assert!(Page::parse(&PAGE.as_bytes()[..cut]).is_err(), "{cut}");
        }
        let last = PAGE.replace("<NextMarker>m&lt;</NextMarker>", "<NextMarker />");
        assert_eq!(Page::parse(last.as_bytes()).unwrap().next, "");
        let none = PAGE.replace("<NextMarker>m&lt;</NextMarker>", "");
        assert!(Page::parse(none.as_bytes()).is_err());
    }

    #[test]
    fn elements_are_found_however_they_are_written() {
        for (what, written) in [
            ("<Blob>", "<Blob Deleted=\"false\" >"),
            ("<BlobPrefix>", "<BlobPrefix\n xmlns:a='b'>"),
            ("<Name>d/a", "<Name a=\"&gt;\" >d/a"),
            (
                "<EnumerationResults>",
                "<EnumerationResults ServiceEndpoint=\"x\">",
            ),
            ("d/a&amp;b", "d/<![CDATA[a&]]>b"),
            ("</Blobs>", "<!-- <Blob> --></Blobs >\n"),
            (
                "</Properties>",
                "<Access><Etag>0x2</Etag></Access></Properties>",
            ),
            ("</Blob>", "<Metadata><Name>x</Name></Metadata></Blob>"),
        ] {
            let page = PAGE.replace(what, written);
            assert_ne!(page, PAGE);
            assert_eq!(names(&page), ["a&bé", "sub"], "{written}");
        }
        let encoded = PAGE.replace(
            "<Name>d/a&amp;b&#xE9;<",
            "<Name Encoded=\"true\">d/a%EF%BF%BE%25<",
        );
        assert_eq!(names(&encoded), ["a\u{fffe}%", "sub"]);
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        for (what, written) in [
            (
                "<?xml version=\"1.0\"?>",
                "<!DOCTYPE x [<!ENTITY y \"z\">]>",
            ),
            ("&amp;", "&other;"),
            ("&amp;", "&"),
            ("&#xE9;", "&#xD800;"),
            ("</Blob>", "</blob>"),
            ("</Blob>", ""),
            ("<Blobs>", "<Blobs><Blob></Blob>"),
            ("<Blobs>", "<Blobs><Blob/>"),
            (
                "<Blobs>",
                "<Blobs><BlobPrefix><Name2>d/b/</Name2></BlobPrefix>",
            ),
            ("<Blobs>", "<Blobs><Blob><Name>d/b</Name></Blob>"),
            ("<Content-Length>5", "<Content-Length>five"),
            ("<Content-Length>5", "<Content-Length>-5"),
            ("<Etag>", "<Content-Length>6</Content-Length><Etag>"),
            ("</Name><Properties>", "</Name><Name>d/c</Name><Properties>"),
            ("<Name>d/a", "<Name Encoded=\"true\">d/%zza"),
            ("<Name>d/a", "<Name a=\"1\" a=\"2\">d/a"),
            ("</EnumerationResults>", "</EnumerationResults>more"),
            ("</EnumerationResults>", "</EnumerationResults><Blob/>"),
            ("EnumerationResults>", "Error>"),
        ] {
            let page = PAGE.replace(what, written);
            assert_ne!(page, PAGE);
            assert!(Page::parse(page.as_bytes()).is_err(), "{written}");
        }
        assert!(Page::parse(b"\xFF<EnumerationResults/>").is_err());
    }
}
