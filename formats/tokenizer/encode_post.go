package tokenizer

import "fmt"

// template is what is put around a text.
type template struct{ before, after []int }

func (t *template) wrap(ids []int) []int {
	all := make([]int, 0, len(t.before)+len(ids)+len(t.after))
	return append(append(append(all, t.before...), ids...), t.after...)
}

// newTemplate makes a step of the post-processor; nil where it adds nothing.
func newTemplate(c *config) (*template, error) {
	switch kind := c.text("type"); kind {
	case "ByteLevel": // changes offsets only
		return &template{}, nil
	case "TemplateProcessing":
		return readTemplate(c)
	case "BertProcessing", "RobertaProcessing":
		before, err := tokenPair(c, "cls")
		if err != nil {
			return nil, err
		}
		after, err := tokenPair(c, "sep")
		return &template{[]int{before}, []int{after}}, err
	case "Sequence":
		steps, err := items(c, "processors", newTemplate)
		all := &template{}
		for _, t := range steps { // each puts its tokens around those of the one before
			all.before = append(append([]int{}, t.before...), all.before...)
			all.after = append(all.after, t.after...)
		}
		return all, err
	default:
		return nil, c.unsupported("%q is not known", kind)
	}
}

// tokenPair reads ["[CLS]", 101].
func tokenPair(c *config, key string) (int, error) {
	pair, err := c.object.Items(key)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", c.part, err)
	}
	if len(pair) != 2 {
		return 0, c.unsupported("%s: %d parts, want 2", key, len(pair))
	}
	id, err := pair[1].Int()
	return int(id), err
}

// readTemplate reads the template for a single text: special tokens, the text once, and
// special tokens.
func readTemplate(c *config) (*template, error) {
	steps, err := c.object.Items("single")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.part, err)
	}
	t, texts := &template{}, 0
	for _, v := range steps {
		o, err := v.Object()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.part, err)
		}
		if _, ok := o.Get("Sequence"); ok {
			texts++
			continue
		}
		token, err := o.Object("SpecialToken")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.part, err)
		}
		name, err := token.String("id")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.part, err)
		}
		ids, err := specialIDs(c, name)
		if err != nil {
			return nil, err
		}
		if texts == 0 {
			t.before = append(t.before, ids...)
		} else {
			t.after = append(t.after, ids...)
		}
	}
	if texts != 1 {
		return nil, c.unsupported("a template with the text %d times", texts)
	}
	return t, nil
}

// specialIDs looks up a name of a template.
func specialIDs(c *config, name string) ([]int, error) {
	tokens, err := c.object.Object("special_tokens")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.part, err)
	}
	token, err := tokens.Object(name)
	if err != nil {
		return nil, fmt.Errorf("%s: special_tokens: %w", c.part, err)
	}
	ids, err := token.Ints("ids")
	if err != nil {
		return nil, fmt.Errorf("%s: special_tokens: %q: %w", c.part, name, err)
	}
	all := make([]int, len(ids))
	for i, id := range ids {
		all[i] = int(id)
	}
	return all, nil
}
