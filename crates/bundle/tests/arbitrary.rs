//! Whatever stands in config.json, the answer is a plan or an error.

mod throwaway;

use bundle::{parse_process, parse_resources, process_plan, resources};
use launch::plan::Toggle;
use proptest::prelude::*;
use serde_json::{Map, Value};
use throwaway::{HOST, context, plan};

const WORDS: [&str; 11] = [
    "",
    "/",
    "a",
    "/a",
    "bind",
    "rbind",
    "..",
    "user",
    "SCMP_ACT_ALLOW",
    "c",
    "net.",
];
const KEYS: [&str; 9] = [
    "type", "path", "names", "action", "args", "size", "hostID", "options", "limit",
];

/// Numbers at the edges of types, strings that mean something somewhere, nested a little.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(&[0, 1, -1, 65536][..]).prop_map(Value::from),
        prop::sample::select(&WORDS[..]).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let key = prop_oneof![
            prop::sample::select(&KEYS[..]).prop_map(str::to_owned),
            any::<String>()
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn everything() -> Value {
    let text = include_str!("golden/everything.json");
    serde_json::from_str(text).expect("the golden file is JSON")
}

/// Every place in a value.
fn pointers(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.to_owned());
    match value {
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                pointers(value, &format!("{at}/{i}"), out);
            }
        }
        Value::Object(object) => {
            for (key, value) in object {
                let key = key.replace('~', "~0").replace('/', "~1");
                pointers(value, &format!("{at}/{key}"), out);
            }
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn a_config_with_anything_anywhere_never_panics(
        places in prop::collection::vec((any::<prop::sample::Index>(), json()), 1..3),
    ) {
        let mut config = everything();
        for (place, value) in places {
            let mut all = Vec::new();
            pointers(&config, "", &mut all);
            if let Some(slot) = config.pointer_mut(&all[place.index(all.len())]) {
                *slot = value;
            }
        }
        let text = serde_json::to_vec(&config).expect("values serialize");
        drop(plan(&text, &context()));
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        drop(plan(&bytes, &context()));
        drop(parse_process(&bytes));
        drop(parse_resources(&bytes));
    }

    #[test]
    fn a_process_or_resources_of_anything_never_panic(value in json()) {
        let text = serde_json::to_vec(&value).expect("values serialize");
        if let Ok(process) = parse_process(&text) {
            let context = bundle::ProcessContext {
                host: HOST,
                preserve_fds: 0,
                new_keyring: Toggle::On,
                seccomp: None,
                capabilities: bundle::capabilities::NONE,
                labels: launch::plan::Labels::default(),
                scheduling: launch::plan::Scheduling::default(),
            };
            drop(process_plan(&process.value, &context));
        }
        if let Ok(spec) = parse_resources(&text) {
            drop(resources(&spec));
        }
    }
}
