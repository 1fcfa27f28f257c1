//! What may come of a request, by what is known when it begins. Pure.

use integration::conformance::Labels;
use proto::snapshots::Kind;
use tonic::Code;

use crate::{
    model::{Known, Model},
    operation::Operation,
    rules::Verdict,
};

/// What may come of an operation that is alone with its names.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    pub(crate) done: bool,
    pub(crate) refused: Vec<Code>,
}

impl Model {
    pub(crate) fn expected(&self, operation: &Operation) -> Expected {
        let mut refused = Vec::new();
        let mut is_open = false;
        let mut verdict = |verdict| match verdict {
            Verdict::Done => {}
            Verdict::Refused => refused.push(Code::InvalidArgument),
            Verdict::Either => is_open = true,
        };
        match operation {
            Operation::Create {
                kind,
                key,
                parent,
                labels,
            } => {
                if *kind == Kind::Active {
                    verdict(self.back_end.at_creation(key, labels));
                }
                match parent.as_ref().map(|parent| self.known.get(parent)) {
                    Some(None) => refused.push(Code::NotFound),
                    Some(Some(known)) if known.kind != Kind::Committed => {
                        refused.push(Code::InvalidArgument);
                    }
                    _ => {}
                }
                if self.known.contains_key(key) {
                    refused.push(Code::AlreadyExists);
                }
            }
            Operation::Commit { key, name, .. } => {
                if self.known.contains_key(name) {
                    refused.push(Code::AlreadyExists);
                }
                refused.extend(self.unless(key, |known| known.kind == Kind::Active));
            }
            Operation::Remove { key } => {
                let has_children = self.children(key).next().is_some();
                refused.extend(self.unless(key, |_| !has_children));
            }
            Operation::Update { key, labels, mask } => match self.known.get(key) {
                None => refused.push(Code::NotFound),
                Some(_) if mask.iter().any(|path| !path.starts_with("labels")) => {
                    refused.push(Code::InvalidArgument);
                }
                Some(known) if known.kind == Kind::Active => {
                    let new = changed(&known.labels, labels, mask);
                    let made = (&known.made, known.is_full);
                    verdict(self.back_end.at_change(key, made, &known.labels, &new));
                }
                Some(_) => {}
            },
            Operation::Stat { key } | Operation::Usage { key } => {
                refused.extend(self.unless(key, |_| true));
            }
            Operation::Mounts { key, .. } => {
                refused.extend(self.unless(key, |known| known.kind != Kind::Committed));
            }
            Operation::Write { key, .. } | Operation::Fill { key, .. } => {
                refused.extend(self.unless(key, |known| known.kind == Kind::Active));
            }
            Operation::List { .. } | Operation::Cleanup => {}
        }
        let done = refused.is_empty();
        if is_open {
            refused.push(Code::InvalidArgument);
            refused.push(Code::FailedPrecondition);
        }
        refused.extend(self.torn(operation));
        Expected { done, refused }
    }

    /// What there is to say when a snapshot is missing, or is not as it has to be.
    fn unless(&self, key: &str, is_fit: impl Fn(&Known) -> bool) -> Option<Code> {
        match self.known.get(key) {
            None => Some(Code::NotFound),
            Some(known) => (!is_fit(known)).then_some(Code::FailedPrecondition),
        }
    }

    /// What may be said of a snapshot whose Commit was interrupted.
    fn torn(&self, operation: &Operation) -> Option<Code> {
        let (Operation::Update { key, .. }
        | Operation::Usage { key }
        | Operation::Mounts { key, .. }
        | Operation::Write { key, .. }
        | Operation::Fill { key, .. }) = operation
        else {
            return None;
        };
        let is_torn = self.known.get(key)?.is_torn;
        is_torn.then_some(Code::FailedPrecondition)
    }

    /// Who must be in the answer to List.
    pub(crate) fn listed(&self, filter: &str) -> Vec<(String, u64)> {
        let listed = self.known.iter().filter(|(name, known)| {
            matches(filter, name, known.kind, &known.labels) && !self.is_taken(name)
        });
        listed
            .map(|(name, known)| (name.clone(), known.touched))
            .collect()
    }
}

/// Labels after an Update.
pub(crate) fn changed(old: &Labels, to: &Labels, mask: &[String]) -> Labels {
    let mut new = match mask {
        [] => return to.clone(),
        _ => old.clone(),
    };
    for label in mask.iter().filter_map(|path| path.strip_prefix("labels.")) {
        match to.get(label) {
            Some(value) => new.insert(label.to_owned(), value.clone()),
            None => new.remove(label),
        };
    }
    new
}

/// The two filters that are asked with.
pub(crate) fn matches(filter: &str, name: &str, kind: Kind, labels: &Labels) -> bool {
    if let Some(value) = filter.strip_prefix("labels.storm==") {
        return labels.get("storm").is_some_and(|label| label == value);
    }
    match filter {
        "kind==committed" => kind == Kind::Committed,
        other => other.is_empty() || other == format!("name=={name:?}"),
    }
}
