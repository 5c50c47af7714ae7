package convert

import (
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/hfrepo"
)

// This file says what a GGUF file tells about its model: what it is called, what it was
// made from, how to sample from it. It comes from the card, generation_config.json, and
// the name of the folder (llama.cpp, gguf-py/gguf/metadata.py).

// aboutKeys writes everything that is known of the model beside its sizes.
func (g *ggufPlanner) aboutKeys() error {
	if err := g.samplingKeys(); err != nil {
		return err
	}
	card := g.card()
	name := g.nameParts(card)
	for _, key := range []string{"name", "author", "version", "organization", "finetune", "basename", "description", "quantized_by", "size_label", "license"} {
		g.text("general."+key, name[key])
	}
	g.text("general.license.name", card.first("license_name"))
	g.text("general.license.link", card.first("license_link"))
	for _, key := range []string{"url", "doi", "uuid", "repo_url"} {
		g.text("general.source."+key, card.first(key, "model_"+key))
	}
	g.parentKeys("base_model", card.list("base_model", "base_models", "base_model_sources"))
	g.parentKeys("dataset", card.list("datasets", "dataset", "dataset_sources"))
	g.texts("general.tags", append(card.list("tags"), card.list("pipeline_tag")...))
	g.texts("general.languages", append(card.list("languages"), card.list("language")...))
	return nil
}

// texts sets a key to a list; the converter leaves out empty ones.
func (g *ggufPlanner) texts(key string, list []string) {
	if len(list) > 0 {
		g.keys.Set(key, gguf.ArrayOf(list))
	}
}

// sampling are the settings of generation_config.json, by their keys; whole are
// integers.
var sampling = []struct {
	key   string
	names []string
	whole bool
}{
	{"top_k", []string{"top_k"}, true}, {"top_p", []string{"top_p"}, false}, {"min_p", []string{"min_p"}, false},
	{"xtc_probability", []string{"xtc_probability"}, false}, {"xtc_threshold", []string{"xtc_threshold"}, false},
	{"temp", []string{"temperature"}, false}, {"penalty_last_n", []string{"penalty_last_n"}, true},
	{"penalty_repeat", []string{"penalty_repeat", "repetition_penalty"}, false}, {"mirostat", []string{"mirostat"}, true},
	{"mirostat_tau", []string{"mirostat_tau"}, false}, {"mirostat_eta", []string{"mirostat_eta"}, false},
}

// samplingKeys writes what the model's makers recommend. A setting that is no number is
// left out, and so is a file that is no JSON, as in the converter: nothing of the model
// depends on it.
func (g *ggufPlanner) samplingKeys() error {
	const file = "generation_config.json"
	data, ok, err := g.file(file)
	if err != nil || !ok {
		return err
	}
	config, err := g.object(file)
	if err != nil {
		g.decide("sampling-left-out", "generation_config.json can't be read: its settings are not in the file", strconv.Itoa(len(data))+" bytes")
		return nil
	}
	if text, ok, err := config.OptString("sequence"); err == nil && ok {
		g.text("general.sampling.sequence", text)
	}
	for _, s := range sampling {
		for _, name := range s.names {
			v, ok := config.Get(name)
			if !ok {
				continue
			}
			f, err := v.Float()
			switch {
			case err != nil:
			case !s.whole:
				set(g, "general.sampling."+s.key, float32(f))
			case f == math.Trunc(f) && math.Abs(f) <= math.MaxInt32:
				set(g, "general.sampling."+s.key, int32(f))
			}
			break
		}
	}
	return nil
}

// modelCard is the front matter of a card.
type modelCard map[string]yaml.Node

func (g *ggufPlanner) card() modelCard {
	front, ok := hfrepo.FrontMatter(g.source.Card())
	if !ok {
		return nil
	}
	var card modelCard
	// A card that is not as expected tells nothing.
	if err := yaml.Unmarshal([]byte(strings.ReplaceAll(string(front), "\t", "  ")), &card); err != nil {
		return nil
	}
	return card
}

// first returns the first of some entries that is a text.
func (c modelCard) first(names ...string) string {
	for _, name := range names {
		if node, ok := c[name]; ok && node.Kind == yaml.ScalarNode && node.Tag != "!!null" {
			return node.Value
		}
	}
	return ""
}

// list returns the first of some entries that is there, as a list of texts.
func (c modelCard) list(names ...string) []string {
	for _, name := range names {
		node, ok := c[name]
		switch {
		case !ok || node.Tag == "!!null":
		case node.Kind == yaml.ScalarNode:
			return []string{node.Value}
		case node.Kind == yaml.SequenceNode:
			var all []string
			for _, item := range node.Content {
				if item.Kind == yaml.ScalarNode {
					all = append(all, item.Value)
				}
			}
			return all
		}
	}
	return nil
}

// nameParts finds the name of the model and its parts: in the card, in the name that
// its config has for it, in the name of its folder, whatever comes first.
func (g *ggufPlanner) nameParts(card modelCard) map[string]string {
	parts := map[string]string{
		"license":  strings.Join(card.list("license"), ","),
		"basename": card.first("basename", "model_basename", "model_type"),
		"author":   card.first("author", "model_author", "model_creator"),
	}
	for _, key := range []string{"name", "version", "organization", "description", "finetune", "size_label"} {
		parts[key] = card.first(key, "model_"+key)
	}
	total, label := g.sizes()
	from := func(id string) {
		n := parseModelID(id, total)
		n.name, n.organization = title(n.name), title(n.organization)
		for key, text := range map[string]string{
			"name": n.name, "organization": n.organization, "basename": n.basename,
			"finetune": n.finetune, "version": n.version, "size_label": n.sizeLabel,
		} {
			if parts[key] == "" {
				parts[key] = text
			}
		}
	}
	if id, ok, err := g.source.Config.OptString("_name_or_path"); err == nil && ok && id != "" && strings.Count(id, "/") <= 1 {
		from(id)
	}
	folder := g.source.Name
	if g.source.Commit == "" {
		folder = baseName(g.source.Path)
	}
	from(filepath.Base(folder))
	if g.options.Name != "" {
		parts["name"] = g.options.Name
	}
	if parts["size_label"] == "" {
		parts["size_label"] = label
	}
	return parts
}

// baseName is the last element of a path; of "." that of the folder it stands for.
func baseName(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	return filepath.Base(path)
}

// parentKeys writes models, or data sets, that this one was made from.
func (g *ggufPlanner) parentKeys(kind string, ids []string) {
	if len(ids) == 0 {
		return
	}
	prefix := "general." + kind + "."
	set(g, prefix+"count", uint32(len(ids)))
	total, _ := g.sizes()
	for i, id := range ids {
		at := prefix + strconv.Itoa(i) + "."
		url := ""
		if hubURL.MatchString(id) || strings.Contains(id, "://") {
			url = id
			match := hubURL.FindStringSubmatch(id)
			if match == nil {
				g.text(at+"repo_url", url)
				continue
			}
			id = match[1]
		}
		n := parseModelID(id, total)
		g.text(at+"name", title(n.name))
		g.text(at+"version", n.version)
		g.text(at+"organization", title(n.organization))
		if url == "" && n.organization != "" && n.name != "" {
			url = "https://huggingface.co/" + n.organization + "/" + n.name
		}
		g.text(at+"repo_url", url)
	}
}

var hubURL = regexp.MustCompile(`^https?://huggingface\.co/([^/]+/[^/]+)$`)

// modelName is what the name of a repository says.
type modelName struct{ name, organization, basename, finetune, version, sizeLabel string }

// The parts of names, and what they look like.
const (
	partBase = 1 << iota
	partSize
	partTune
	partVersion
	partType
)

var (
	versionPart = regexp.MustCompile(`(?i)^(v|iter)?\d+([.]\d+)*$`)
	typePart    = regexp.MustCompile(`(?i)^(i?q\d(_\w)*|b?fp?(16|32))$`)
	sizePart    = regexp.MustCompile(`(?i)^((([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?)|small|mini|medium|large|x?xl)$`)
	tunePart    = regexp.MustCompile(`(?i)^(chat|instruct|vision|lora)$`)
	titleSkip   = regexp.MustCompile(`^(v\d+(?:\.\d+)*|\d.*)$`)
)

// parseModelID takes a name apart at its dashes. A size that is far from the number of
// parameters is something else, a context length most likely.
func parseModelID(id string, total int64) modelName {
	if strings.Contains(id, " ") {
		return modelName{name: id} // a sentence
	}
	var n modelName
	n.name = id
	if organization, name, ok := strings.Cut(id, "/"); ok {
		n.organization, n.name = organization, name
	}
	if strings.HasPrefix(n.organization, ".") {
		n.organization = ""
	}
	parts := slices.DeleteFunc(strings.Split(n.name, "-"), func(p string) bool { return p == "" })
	kinds := make([]int, len(parts))
	for i, part := range parts {
		switch {
		case versionPart.MatchString(part):
			kinds[i] = partVersion
		case typePart.MatchString(part):
			kinds[i], parts[i] = partType, strings.ToUpper(part)
		case i > 0 && sizePart.MatchString(part):
			parts[i], kinds[i] = sizeOfPart(part, total)
		case i > 0 && tunePart.MatchString(part):
			kinds[i] = partTune
		}
	}
	dropWordSizes(parts, kinds)
	markBase(parts, kinds)
	join := func(want, not int) string {
		var all []string
		for i, part := range parts {
			if kinds[i]&want != 0 && kinds[i]&not == 0 {
				all = append(all, part)
			}
		}
		if want == partSize {
			all = unique(all)
		}
		return strings.Join(all, "-")
	}
	n.sizeLabel, n.finetune, n.version = join(partSize, 0), join(partTune, 0), join(partVersion, partBase)
	if n.sizeLabel != "" || n.finetune != "" || n.version != "" {
		n.basename = join(partBase, 0)
	}
	return n
}

// sizeOfPart brings a size into the usual form, and says whether it is one.
func sizeOfPart(part string, total int64) (string, int) {
	part = strings.ReplaceAll(part, "_", ".")
	if last := len(part) - 1; part[last] >= '0' && part[last] <= '9' { // as in 7b1
		part = part[:last-1] + "." + part[last:] + part[last-1:last]
	}
	last := len(part) - 1
	if last > 0 && part[last-1] >= '0' && part[last-1] <= '9' && strings.ContainsRune("kmbt", rune(part[last])) {
		part = part[:last] + strings.ToUpper(part[last:])
	}
	if number, err := strconv.ParseFloat(part[:last], 64); err == nil && total != 0 {
		power := strings.IndexByte(" KMBT", part[last])
		stated := number * math.Pow(1000, float64(power))
		if math.Abs(stated-float64(total)) > float64(7*total/8) {
			return part[:last] + strings.ToLower(part[last:]), partTune
		}
	}
	return part, partSize
}

// dropWordSizes takes words like small for something else where a number says the size.
func dropWordSizes(parts []string, kinds []int) {
	isDigit := func(r rune) bool { return r >= '0' && r <= '9' }
	numbered := false
	for i, part := range parts {
		numbered = numbered || kinds[i]&partSize != 0 && strings.ContainsFunc(part, isDigit)
	}
	for i, part := range parts {
		if numbered && kinds[i]&partSize != 0 && !strings.ContainsFunc(part, func(r rune) bool { return !unicode.IsLetter(r) }) {
			kinds[i] &^= partSize
		}
	}
}

// markBase finds the parts in front that the model is called by; what is left behind
// them is the name of a fine-tune.
func markBase(parts []string, kinds []int) {
	start := true
	for i, part := range parts {
		first := []rune(part)[0]
		if start && (kinds[i] == 0 && unicode.IsLetter(first) || kinds[i]&partVersion != 0) {
			kinds[i] |= partBase
			continue
		}
		start = false
		if kinds[i] == 0 {
			kinds[i] = partTune
		}
	}
	for i := len(kinds) - 1; i >= 0 && kinds[i]&partBase != 0 && kinds[i] != partBase; i-- {
		kinds[i] &^= partBase // a version at the end
	}
}

func unique(list []string) []string {
	var all []string
	for _, s := range list {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

// title writes a name as a heading: words in small letters get a large one, but for
// versions and numbers.
func title(id string) string {
	words := strings.Fields(strings.ReplaceAll(strings.TrimSpace(id), "-", " "))
	for i, w := range words {
		if !isLower(w) || titleSkip.MatchString(w) {
			continue
		}
		inside := false
		words[i] = strings.Map(func(r rune) rune {
			before := inside
			inside = unicode.IsLetter(r)
			if inside && !before {
				return unicode.ToTitle(r)
			}
			return r
		}, w)
	}
	return strings.Join(words, " ")
}

// isLower reports whether a word has letters with a case, all of them small.
func isLower(w string) bool {
	small := false
	for _, r := range w {
		if unicode.IsUpper(r) || unicode.IsTitle(r) {
			return false
		}
		small = small || unicode.IsLower(r)
	}
	return small
}
