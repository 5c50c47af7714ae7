package cli

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
)

type (
	ggufJSON struct {
		Version      int                `json:"version"`
		Kind         string             `json:"type"`
		Architecture string             `json:"architecture,omitempty"`
		Name         string             `json:"name,omitempty"`
		SizeLabel    string             `json:"size_label,omitempty"`
		FileType     string             `json:"file_type,omitempty"`
		Alignment    int64              `json:"alignment"`
		Adapter      *ggufAdapterJSON   `json:"adapter,omitempty"`
		Tokenizer    *ggufTokenizerJSON `json:"tokenizer,omitempty"`
		Types        []ggufTypeJSON     `json:"types"`
		Files        []ggufFileJSON     `json:"files"`
		Keys         []ggufKeyJSON      `json:"keys"`
		Problems     []string           `json:"problems"`
	}
	ggufTypeJSON struct {
		Type    string `json:"type"`
		Tensors int    `json:"tensors"`
		Params  int64  `json:"parameters"`
		Bytes   int64  `json:"bytes"`
	}
	ggufFileJSON struct {
		Name    string `json:"name"`
		Bytes   int64  `json:"bytes"`
		Tensors int    `json:"tensors"`
	}
	ggufTokenizerJSON struct {
		Model        string             `json:"model"`
		Pre          string             `json:"pre"`
		Tokens       int                `json:"tokens"`
		Merges       int                `json:"merges"`
		Special      []ggufSpecialToken `json:"special"`
		ChatTemplate int                `json:"chat_template_bytes"`
	}
	ggufSpecialToken struct {
		Role string `json:"role"`
		ID   int64  `json:"id"`
		Text string `json:"text"`
	}
	ggufAdapterJSON struct {
		Type    string         `json:"type"`
		Alpha   number         `json:"alpha"`
		Modules int            `json:"modules"`
		Ranks   []ggufRankJSON `json:"ranks"`
	}
	ggufRankJSON struct {
		Rank    int64 `json:"rank"`
		Modules int   `json:"modules"`
	}
	// ggufKeyJSON is a key with its value: a number, a boolean, a text, an object
	// with the hexadecimal bytes of what is no text, or the first elements of a list.
	ggufKeyJSON struct {
		Key      string `json:"key"`
		Type     string `json:"type"`
		Elements string `json:"elements,omitempty"` // type of a list's elements
		Length   *int   `json:"length,omitempty"`   // of a list
		Value    any    `json:"value"`
	}
	hexJSON struct {
		Hex string `json:"hex"`
	}
)

// How many elements of a list are shown. A tokenizer has a hundred thousand.
const (
	textElements = 4
	jsonElements = 16
)

// describeGGUF turns a summary into its published form, nil for other models.
func describeGGUF(m *checkpoint.Model) *ggufJSON {
	s, ok := m.GGUFSummary()
	if !ok {
		return nil
	}
	doc := &ggufJSON{
		Version: s.Version, Kind: s.Kind, Architecture: s.Architecture, Name: s.Name, SizeLabel: s.SizeLabel,
		FileType: s.FileType, Alignment: s.Alignment, Types: []ggufTypeJSON{}, Files: []ggufFileJSON{},
		Keys: []ggufKeyJSON{}, Problems: []string{},
	}
	for _, t := range s.Types {
		doc.Types = append(doc.Types, ggufTypeJSON{t.Type.String(), t.Tensors, t.Parameters, t.Bytes})
	}
	for _, f := range s.Files {
		doc.Files = append(doc.Files, ggufFileJSON(f))
	}
	for key, v := range m.GGUF().Metadata().All() {
		doc.Keys = append(doc.Keys, describeKey(key, v))
	}
	doc.Problems = append(doc.Problems, s.Problems...)
	if t := s.Tokenizer; t != nil {
		doc.Tokenizer = &ggufTokenizerJSON{t.Model, t.Pre, t.Tokens, t.Merges, []ggufSpecialToken{}, len(t.ChatTemplate)}
		for _, special := range t.Special {
			doc.Tokenizer.Special = append(doc.Tokenizer.Special, ggufSpecialToken(special))
		}
	}
	if a := s.Adapter; a != nil {
		doc.Adapter = &ggufAdapterJSON{a.Type, number(a.Alpha), a.Modules, []ggufRankJSON{}}
		for _, r := range a.Ranks {
			doc.Adapter.Ranks = append(doc.Adapter.Ranks, ggufRankJSON(r))
		}
	}
	return doc
}

func describeKey(key string, v gguf.Value) ggufKeyJSON {
	doc := ggufKeyJSON{Key: key, Type: v.Type().String()}
	if v.Type() != gguf.Array {
		doc.Value = scalarJSON(v)
		return doc
	}
	n, elements := v.Len(), []any{}
	for i, e := range v.All() {
		if i == jsonElements {
			break
		}
		elements = append(elements, scalarJSON(e))
	}
	doc.Elements, doc.Length, doc.Value = v.ElemType().String(), &n, elements
	return doc
}

// scalarJSON is a value as JSON has it: null for a number that is not finite.
func scalarJSON(v gguf.Value) any {
	switch v.Type() {
	case gguf.String:
		text, _ := v.Text()
		if !utf8.ValidString(text) {
			return hexJSON{hex.EncodeToString([]byte(text))}
		}
		return text
	case gguf.Bool:
		b, _ := v.Bool()
		return b
	case gguf.Float32, gguf.Float64:
		if f, _ := v.Float(); math.IsNaN(f) || math.IsInf(f, 0) {
			return nil
		}
	}
	return json.Number(scalarText(v))
}

// scalarText is a value as text has it. Floating-point numbers have as many digits
// as tell them from others of their type.
func scalarText(v gguf.Value) string {
	switch v.Type() {
	case gguf.String:
		text, _ := v.Text()
		return text
	case gguf.Bool:
		b, _ := v.Bool()
		return strconv.FormatBool(b)
	case gguf.Float32:
		f, _ := v.Float()
		return strconv.FormatFloat(f, 'g', -1, 32)
	case gguf.Float64:
		f, _ := v.Float()
		return strconv.FormatFloat(f, 'g', -1, 64)
	case gguf.Uint64:
		n, _ := v.Uint()
		return strconv.FormatUint(n, 10)
	}
	n, _ := v.Int()
	return strconv.FormatInt(n, 10)
}

// valueText is one line: a list is its type and its first elements.
func valueText(v gguf.Value) string {
	if v.Type() != gguf.Array {
		return shortened(oneLine(scalarText(v)))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s", v.Len(), v.ElemType())
	for i, e := range v.All() {
		if i == textElements {
			b.WriteString(", ...")
			break
		}
		text := scalarText(e)
		if e.Type() == gguf.String {
			text = clipped(text)
		}
		separator := ","
		if i == 0 {
			separator = ":"
		}
		fmt.Fprintf(&b, "%s %s", separator, text)
	}
	return oneLine(b.String())
}

// clipped quotes the text of a list's element or of a token.
func clipped(text string) string {
	const limit = 24 // longer than nearly every token
	if runes := []rune(text); len(runes) > limit {
		return strconv.Quote(string(runes[:limit])) + "..."
	}
	return strconv.Quote(text)
}

// printGGUF prints what stands between the first line and the tensors.
func (a *App) printGGUF(doc *ggufJSON, keys *gguf.Metadata) {
	fmt.Fprintf(a.out, "%s\n", oneLine(doc.title()))
	if len(doc.Types) > 0 {
		fmt.Fprintf(a.out, "types: %s\n", doc.typeList())
	}
	if ad := doc.Adapter; ad != nil {
		fmt.Fprintf(a.out, "factors: %s\n", oneLine(ad.text()))
	}
	if t := doc.Tokenizer; t != nil {
		fmt.Fprintf(a.out, "tokenizer: %s\n", oneLine(t.text()))
	}
	if len(doc.Files) > 1 {
		for _, f := range doc.Files {
			fmt.Fprintf(a.out, "file %s: %d tensors, %s\n", oneLine(f.Name), f.Tensors, formatSize(f.Bytes))
		}
	}
	for _, p := range doc.Problems {
		fmt.Fprintf(a.out, "problem: %s\n", oneLine(p))
	}
	for key, v := range keys.All() {
		fmt.Fprintf(a.out, "metadata %s: %s\n", shortened(oneLine(key)), valueText(v))
	}
}

// title says what the file is.
func (doc *ggufJSON) title() string {
	title := doc.Kind + ":"
	if doc.Architecture != "" {
		title += " " + doc.Architecture
	}
	if doc.Name != "" {
		title += " " + clipped(doc.Name)
	}
	for _, part := range []struct{ name, value string }{{"", doc.SizeLabel}, {"file type ", doc.FileType}} {
		if part.value != "" {
			title += ", " + part.name + shortened(part.value)
		}
	}
	title += fmt.Sprintf(", version %d", doc.Version)
	if doc.Alignment != gguf.DefaultAlignment {
		title += fmt.Sprintf(", alignment %d", doc.Alignment)
	}
	return title
}

func (doc *ggufJSON) typeList() string {
	var list []string
	for _, t := range doc.Types {
		list = append(list, fmt.Sprintf("%d %s (%s)", t.Tensors, t.Type, formatSize(t.Bytes)))
	}
	return strings.Join(list, ", ")
}

func (ad *ggufAdapterJSON) text() string {
	text := shortened(ad.Type)
	for _, r := range ad.Ranks {
		text += fmt.Sprintf(", rank %d in %d modules", r.Rank, r.Modules)
	}
	return text + fmt.Sprintf(", alpha %v", float32(ad.Alpha))
}

func (t *ggufTokenizerJSON) text() string {
	text := shortened(t.Model)
	if t.Pre != "" {
		text += fmt.Sprintf(" (%s)", shortened(t.Pre))
	}
	text += fmt.Sprintf(", %d tokens", t.Tokens)
	if t.Merges > 0 {
		text += fmt.Sprintf(", %d merges", t.Merges)
	}
	for _, s := range t.Special {
		text += fmt.Sprintf(", %s %d %s", shortened(s.Role), s.ID, clipped(s.Text))
	}
	if t.ChatTemplate > 0 {
		text += fmt.Sprintf(", chat template of %d bytes", t.ChatTemplate)
	}
	return text
}
