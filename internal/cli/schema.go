package cli

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/loratool/loratool/verify"
)

// document is something that --json prints, by the name of its schema. A name may have
// several forms.
type document struct {
	name  string // "merge": loratool.merge/v1
	title string
	forms []any
}

// documents is every document on stdout, and the lines on stderr.
var documents = []document{
	{"plan", "what a run would write: --dry-run of merge, quantize and convert", []any{planJSON{}, ggufPlanJSON{}}},
	{"extract-plan", "what an extraction would write: --dry-run of extract and resize", []any{extractPlanJSON{}}},
	{"merge", "what a merge did", []any{mergeJSON{}}},
	{"extract", "what extract or resize did", []any{extractJSON{}}},
	{"extract-sweep", "what several ranks of an extraction would keep", []any{sweepJSON{}}},
	{"resize-sweep", "what several ranks of an adapter would keep", []any{sweepJSON{}}},
	{"quantize", "what a quantization did", []any{quantizeJSON{}, ggufQuantizeJSON{}}},
	{"quantize-loftq", "what a quantization with an adapter did", []any{repairJSON{}}},
	{"convert", "what a conversion did", []any{convertJSON{}}},
	{"inspect", "what is in a checkpoint", []any{inspectJSON{}}},
	{"manifest", "the tensors of a checkpoint and their hashes: inspect --manifest", []any{verify.Manifest{}}},
	{"verify", "what was found wrong", []any{verifyJSON{}}},
	{"diff", "how two checkpoints differ", []any{diffJSON{}}},
	{"version", "the build", []any{versionJSON{}}},
	{"messages", "a line on stderr", []any{noteJSON{}, progressJSON{}, errorJSON{}}},
}

// choices are the values of fields that have but a few, by type and name.
var choices = map[string][]string{
	"finding.severity":      {"error", "warning", "info"},
	"diff.result":           {"same", "within_limits", "different"},
	"note.message_type":     {"note"},
	"progress.message_type": {"progress"},
	"error.message_type":    {"error"},
	"error.kind":            {"usage", "input", "refused", "cancelled", "failed"},
	"inspect.format":        {"safetensors", "gguf"},
	"diffSide.format":       {"safetensors", "gguf"},
}

// Schemas returns the JSON schemas (draft 2020-12) of all documents by file name. They are
// made of the types that the documents are made of. Objects may have further members:
// within a version members are only added.
func Schemas() map[string][]byte {
	all := make(map[string][]byte)
	for _, d := range documents {
		all[d.name+".schema.json"] = encodeJSON(d.schema(), "  ")
	}
	return all
}

func (d *document) schema() map[string]any {
	m := &schemaMaker{defs: make(map[string]any), name: "loratool." + d.name + "/v1"}
	doc := map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema",
		"title":   m.name, "description": d.title,
	}
	if len(d.forms) == 1 {
		maps.Copy(doc, m.object(reflect.TypeOf(d.forms[0])))
	} else {
		var forms []any
		for _, f := range d.forms {
			forms = append(forms, m.object(reflect.TypeOf(f)))
		}
		doc["anyOf"] = forms
	}
	if len(m.defs) > 0 {
		doc["$defs"] = m.defs
	}
	return doc
}

// schemaMaker makes the schema of one document.
type schemaMaker struct {
	name string
	defs map[string]any
}

var numberType = reflect.TypeFor[number]()

// value is the schema of a value. What is optional by a pointer and is not left out is null.
func (m *schemaMaker) value(t reflect.Type) map[string]any {
	if t == numberType {
		return map[string]any{"type": []string{"number", "null"}}
	}
	switch t.Kind() {
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Int, reflect.Int64:
		return map[string]any{"type": "integer"}
	case reflect.Uint64:
		return map[string]any{"type": "integer", "minimum": 0}
	case reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Pointer:
		return m.value(t.Elem())
	case reflect.Slice:
		return map[string]any{"type": "array", "items": m.value(t.Elem())}
	case reflect.Array:
		return map[string]any{"type": "array", "items": m.value(t.Elem()), "minItems": t.Len(), "maxItems": t.Len()}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": m.value(t.Elem())}
	case reflect.Interface:
		return map[string]any{}
	case reflect.Struct:
		name := schemaName(t)
		if _, ok := m.defs[name]; !ok {
			m.defs[name] = nil // for types that hold themselves
			m.defs[name] = m.object(t)
		}
		return map[string]any{"$ref": "#/$defs/" + name}
	}
	panic(fmt.Sprintf("cli: a document holds a %s", t))
}

// object is the schema of a struct; embedded ones lend their members.
func (m *schemaMaker) object(t reflect.Type) map[string]any {
	properties, required := make(map[string]any), []string{}
	for _, f := range reflect.VisibleFields(t) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous || name == "" || name == "-" {
			continue
		}
		properties[name] = m.member(t, f, name)
		if options != "omitempty" {
			required = append(required, name)
		}
	}
	slices.Sort(required)
	return map[string]any{"type": "object", "properties": properties, "required": required}
}

// member is the schema of a field.
func (m *schemaMaker) member(t reflect.Type, f reflect.StructField, name string) map[string]any {
	s := m.value(f.Type)
	if name == "schema" {
		return map[string]any{"const": m.name}
	}
	if values := choices[schemaName(t)+"."+name]; values != nil {
		s["enum"] = values
	}
	if f.Type.Kind() == reflect.Pointer && !strings.Contains(f.Tag.Get("json"), "omitempty") && f.Type.Elem() != numberType {
		return map[string]any{"anyOf": []any{s, map[string]any{"type": "null"}}}
	}
	return s
}

// schemaName is a type's name without the part that says what it is for.
func schemaName(t reflect.Type) string { return strings.TrimSuffix(t.Name(), "JSON") }
