package extract

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/internal/strictjson"
)

// config writes the adapter_config.json and reads it back: what it says of every
// module has to be what the adapter holds.
func (d *draft) config() (*strictjson.Object, error) {
	o, err := d.writeConfig(func(name string) string { return name })
	if err == nil && d.checkConfig(o) != nil {
		// Keys of patterns are expressions; names that are understood as such get
		// their dots escaped, which only PEFT itself reads.
		o, err = d.writeConfig(func(name string) string { return "^" + regexp.QuoteMeta(name) })
	}
	if err != nil {
		return nil, err
	}
	return o, d.checkConfig(o)
}

// writeConfig sets the keys that PEFT writes, in its order.
func (d *draft) writeConfig(patternKey func(name string) string) (*strictjson.Object, error) {
	ranks := strictjson.NewObject()
	var pairs []*carried
	for _, c := range d.all {
		if c.form != pairForm {
			continue
		}
		pairs = append(pairs, c)
		if c.rank() != d.ranks {
			ranks.Set(patternKey(c.patternName()), strictjson.NewInt(c.rank()))
		}
	}
	alpha, alphas := strictjson.NewInt(d.ranks), ranks
	if a := d.s.opts.Alpha; a != 0 {
		alphas = strictjson.NewObject()
		alpha = strictjson.NewInt(int64(a))
		if a != math.Trunc(a) {
			var err error
			if alpha, err = strictjson.NewFloat(a); err != nil {
				return nil, err
			}
		}
	}
	base := d.s.base
	dropout, _ := strictjson.NewFloat(0)
	values := map[string]strictjson.Value{
		"alpha_pattern": alphas.Value(), "auto_mapping": strictjson.NewNull(),
		"base_model_name_or_path": strictjson.NewString(base.Name),
		"bias":                    strictjson.NewString(d.bias),
		"exclude_modules":         strictjson.NewNull(),
		"fan_in_fan_out":          strictjson.NewBool(d.allTransposed(pairs)),
		"inference_mode":          strictjson.NewBool(true), "init_lora_weights": strictjson.NewBool(true),
		"layers_pattern": strictjson.NewNull(), "layers_to_transform": strictjson.NewNull(),
		"lora_alpha": alpha, "lora_bias": strictjson.NewBool(d.add), "lora_dropout": dropout,
		"modules_to_save": stringsOrNull(d.savedModules()),
		"peft_type":       strictjson.NewString("LORA"), "r": strictjson.NewInt(d.ranks),
		"rank_pattern": ranks.Value(), "revision": strictjson.NewNull(),
		"target_modules": strictjson.NewStrings(d.targets()), "target_parameters": stringsOrNull(d.targetParameters()),
		"task_type": strictjson.NewNull(), "trainable_token_indices": d.tokens(),
		"use_dora": strictjson.NewBool(false), "use_rslora": strictjson.NewBool(false),
	}
	if base.Commit != "" {
		values["revision"] = strictjson.NewString(base.Commit)
	}
	if t := taskType(d.s.config); t != "" {
		values["task_type"] = strictjson.NewString(t)
	}
	if e := d.find(d.s.embedding); e != nil && e.form == pairForm && d.s.tiedBase && d.s.tiedTuned {
		values["ensure_weight_tying"] = strictjson.NewBool(true)
	}
	o := strictjson.NewObject()
	for _, key := range slices.Sorted(maps.Keys(values)) {
		o.Set(key, values[key])
	}
	return o, nil
}

// patternName is what PEFT matches rank_pattern and alpha_pattern against.
func (c *carried) patternName() string {
	if c.isParameter() {
		return c.name()
	}
	return c.module
}

// allTransposed is fan_in_fan_out: whether the adapted layers are all stored
// (in, out). PEFT looks at the layers themselves and only warns.
func (d *draft) allTransposed(pairs []*carried) bool {
	return !slices.ContainsFunc(pairs, func(c *carried) bool { return c.role != Conv1D })
}

// taskType is the class that PEFT wraps the model in. Only that of causal language
// models adds nothing to it.
func taskType(c hfrepo.Config) string {
	a := c.Architecture()
	if strings.HasSuffix(a, "ForCausalLM") || strings.HasSuffix(a, "LMHeadModel") {
		return "CAUSAL_LM"
	}
	return ""
}

func stringsOrNull(list []string) strictjson.Value {
	if len(list) == 0 {
		return strictjson.NewNull()
	}
	return strictjson.NewStrings(list)
}

// savedModules lists modules_to_save by their whole names: PEFT takes whatever
// ends in a name, even in the middle of a word.
func (d *draft) savedModules() []string {
	var all []string
	for _, c := range d.all {
		if c.form == savedForm && !slices.Contains(all, c.root) {
			all = append(all, c.root)
		}
	}
	return all
}

// targets lists target_modules: the last part of a name where every module that
// ends so has a pair, else the whole name.
func (d *draft) targets() []string {
	pairs := make(map[string]bool)
	for _, c := range d.all {
		if c.form == pairForm && !c.isParameter() {
			pairs[c.module] = true
		}
	}
	spoiled := make(map[string]bool) // last parts that other modules have too
	for module := range d.s.modules {
		for m := module; m != ""; m, _ = splitName(m) {
			if !pairs[m] {
				_, leaf := splitName(m)
				spoiled[leaf] = true
			}
		}
	}
	seen := make(map[string]bool)
	all := []string{}
	for _, c := range d.all {
		if !pairs[c.module] || c.form != pairForm {
			continue
		}
		_, name := splitName(c.module)
		if spoiled[name] {
			name = c.module
		}
		if !seen[name] {
			seen[name] = true
			all = append(all, name)
		}
	}
	return all
}

func (d *draft) targetParameters() []string {
	var all []string
	for _, c := range d.all {
		if c.form == pairForm && c.isParameter() {
			all = append(all, c.name())
		}
	}
	return all
}

// tokens is trainable_token_indices: the changed rows of each table.
func (d *draft) tokens() strictjson.Value {
	o := strictjson.NewObject()
	for _, c := range d.all {
		if c.form != rowsForm {
			continue
		}
		var rows []strictjson.Value
		for _, row := range c.finding.rows {
			rows = append(rows, strictjson.NewInt(row))
		}
		o.Set(c.module, strictjson.NewArray(rows...))
	}
	if o.Len() == 0 {
		return strictjson.NewNull()
	}
	return o.Value()
}

// checkConfig reads the config as a loader would and compares what it says of every
// module with what was decided.
func (d *draft) checkConfig(o *strictjson.Object) error {
	c, err := adapter.ParseConfig(o)
	if err != nil {
		return fmt.Errorf("adapter_config.json: %w", err)
	}
	pairs := make(map[string]bool)
	for _, x := range d.all {
		if x.form != pairForm {
			continue
		}
		if !x.isParameter() {
			pairs[x.module] = true
		}
		if c.RankOf(x.patternName()) != x.rank() || c.ScaleOf(x.patternName()) != d.scale(x) {
			return fmt.Errorf("adapter_config.json: its patterns give %q another rank or scale", x.patternName())
		}
	}
	for module := range d.s.modules {
		if c.Covers(module) != pairs[module] {
			return fmt.Errorf("adapter_config.json: target_modules can't tell %q from other modules of the model", module)
		}
		for _, root := range d.savedModules() {
			if strings.HasSuffix(module, root) && !within(module, root) {
				return fmt.Errorf("adapter_config.json: modules_to_save can't tell %q from %q", root, module)
			}
		}
	}
	return nil
}
