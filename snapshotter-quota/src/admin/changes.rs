//! What a request to set a limit makes of labels. Pure.

use proto::quota::SetRequest;
use snapshot_core::Labels;

use crate::{
    Error, Result,
    containerd::LabelChanges,
    limit::{
        DISK_QUOTA, INODES, Inodes, MAX_SIZE, MODE, Mode, Refusal, SOFT_SIZE, Size, Thresholds,
        Unreadable, WARN,
    },
};

/// The labels a request changes, with values as containerd's own readers expect them: a size in
/// plain bytes.
///
/// # Errors
/// [`Error::Refused`] for a value that is none; [`Error::Core`] for a request that changes nothing.
pub(super) fn of(request: &SetRequest, labels: &Labels) -> Result<LabelChanges> {
    let mut changes = LabelChanges::new();
    add::<Size>(&mut changes, MAX_SIZE, request.size.as_deref())?;
    add::<Size>(&mut changes, SOFT_SIZE, request.soft_size.as_deref())?;
    add::<Inodes>(&mut changes, INODES, request.inodes.as_deref())?;
    add::<Thresholds>(&mut changes, WARN, request.warn.as_deref())?;
    add::<Mode>(&mut changes, MODE, request.mode.as_deref())?;
    if changes.is_empty() {
        return Err(Error::Core(snapshot_core::Error::Invalid(
            "nothing is to be set".to_owned(),
        )));
    }
    // Both labels may be there only with the same value; the standard one stays.
    if changes.contains_key(MAX_SIZE) && labels.contains_key(DISK_QUOTA) {
        changes.insert(DISK_QUOTA, None);
    }
    Ok(changes)
}

fn add<T>(
    changes: &mut LabelChanges,
    label: &'static str,
    text: Option<&str>,
) -> Result<(), Refusal>
where
    T: std::str::FromStr<Err = Unreadable> + ToString,
{
    let value = match text {
        None => return Ok(()),
        Some("") => None,
        Some(text) => Some(
            text.parse::<T>()
                .map_err(|why| why.in_label(label))?
                .to_string(),
        ),
    };
    changes.insert(label, value);
    Ok(())
}

/// The labels as they will be.
pub(super) fn applied(labels: &Labels, changes: &LabelChanges) -> Labels {
    let mut labels = labels.clone();
    for (label, value) in changes {
        match value {
            Some(value) => labels.insert((*label).to_owned(), value.clone()),
            None => labels.remove(*label),
        };
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> SetRequest {
        SetRequest {
            name: "web".to_owned(),
            ..SetRequest::default()
        }
    }

    #[test]
    fn values_become_labels_in_the_form_that_containerd_reads() {
        let request = SetRequest {
            size: Some("20g".to_owned()),
            inodes: Some("7".to_owned()),
            warn: Some("95%,80%".to_owned()),
            mode: Some(String::new()),
            ..request()
        };
        let changes = of(&request, &Labels::new()).unwrap();
        let expected = [
            (MAX_SIZE, Some("21474836480")),
            (INODES, Some("7")),
            (WARN, Some("80%,95%")),
            (MODE, None),
        ];
        let expected = expected.map(|(label, value)| (label, value.map(str::to_owned)));
        assert_eq!(changes, LabelChanges::from(expected));
        let before = [
            (MODE.to_owned(), "off".to_owned()),
            ("kept".to_owned(), "x".to_owned()),
        ];
        let after = applied(&before.into(), &changes);
        assert_eq!(after.get(MODE), None);
        assert_eq!(after["kept"], "x");
        assert_eq!(after[MAX_SIZE], "21474836480");
    }

    #[test]
    fn the_other_name_of_the_size_gives_way() {
        let labels = [(DISK_QUOTA.to_owned(), "10g".to_owned())].into();
        let request = SetRequest {
            size: Some("20g".to_owned()),
            ..request()
        };
        let changes = of(&request, &labels).unwrap();
        assert_eq!(changes.get(DISK_QUOTA), Some(&None));
    }

    #[test]
    fn what_is_no_value_is_refused_with_its_label() {
        for (request, expected) in [
            (
                SetRequest {
                    size: Some("-1".to_owned()),
                    ..request()
                },
                MAX_SIZE,
            ),
            (
                SetRequest {
                    mode: Some("loud".to_owned()),
                    ..request()
                },
                MODE,
            ),
            (request(), "nothing is to be set"),
        ] {
            let error = of(&request, &Labels::new()).unwrap_err();
            assert!(error.in_one_line().contains(expected), "{error:?}");
        }
    }
}
