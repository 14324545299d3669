//! What was found wrong, for people.

/// Something that could not be read as it should, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The disk, partition, group or volume it concerns.
    pub subject: String,
    /// A sentence for people.
    pub message: String,
}

impl Problem {
    /// A problem of `subject`.
    pub fn new(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Problem {
            subject: subject.into(),
            message: message.into(),
        }
    }

    /// The problem in words, as told where it is clear that `name` is meant.
    pub fn within(&self, name: &str) -> String {
        let rest = self.subject.strip_prefix(name);
        let subject = rest.map_or(&*self.subject, |rest| {
            rest.trim_start_matches([':', '/', ' '])
        });
        format!("{subject}: {}", self.message)
    }
}
