package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/loratool/loratool/formats/tensor"
)

// treeJSON is a module with what lies in it. Layers that are alike are one, with their
// numbers.
type treeJSON struct {
	Name     string     `json:"name"`
	Count    int        `json:"count"` // modules that are alike, 1 for most
	Tensors  int        `json:"tensors"`
	Params   int64      `json:"parameters"`
	Bytes    int64      `json:"bytes"`
	DTypes   []string   `json:"dtypes"`
	Shape    []int64    `json:"shape,omitempty"` // of a tensor
	Children []treeJSON `json:"children,omitempty"`
}

// treeDepth is how many components of a name are modules; real names have a dozen, and a
// name of a hostile file has as many dots as it likes.
const treeDepth = 32

// treeOf makes a tree of the components of the names.
func treeOf(tensors []inspectTensor) []treeJSON {
	root := new(treeJSON)
	for i := range tensors {
		root.add(strings.SplitN(tensors[i].Name, ".", treeDepth), &tensors[i])
	}
	root.gather()
	return root.Children
}

// add adds a tensor below a module.
func (n *treeJSON) add(path []string, t *inspectTensor) {
	dtype := t.DType
	if t.Stored != nil {
		dtype = t.Stored.Type
	}
	params := int64(1)
	for _, d := range t.Shape {
		params *= d
	}
	n.Tensors++
	n.Params += params
	n.Bytes += t.storedBytes()
	if !slices.Contains(n.DTypes, dtype) {
		n.DTypes = append(n.DTypes, dtype)
	}
	if len(path) == 0 {
		n.Shape = t.Shape
		return
	}
	i := slices.IndexFunc(n.Children, func(c treeJSON) bool { return c.Name == path[0] && c.Shape == nil })
	if i < 0 {
		i = len(n.Children)
		n.Children = append(n.Children, treeJSON{Name: path[0], Count: 1})
	}
	n.Children[i].add(path[1:], t)
}

// storedBytes is what a tensor takes in the file.
func (t *inspectTensor) storedBytes() int64 {
	if t.Stored != nil {
		return t.Stored.Bytes
	}
	return t.Bytes
}

// gather makes one of numbered modules that follow each other and are alike: 0..31.
func (n *treeJSON) gather() {
	for i := range n.Children {
		n.Children[i].gather()
	}
	sortModules(n.Children)
	slices.Sort(n.DTypes)
	var kept []treeJSON
	for _, c := range n.Children {
		last := len(kept) - 1
		if last < 0 || !kept[last].precedes(&c) || !kept[last].alike(&c) {
			kept = append(kept, c)
			continue
		}
		first, _, _ := strings.Cut(kept[last].Name, "..")
		kept[last].Name = first + ".." + c.Name
		kept[last].Count++
	}
	n.Children = kept
}

// sortModules puts modules into the order of their names, numbers by their size: files
// have them in any order, and layers are alike in whatever order their tensors are.
func sortModules(list []treeJSON) {
	slices.SortStableFunc(list, func(x, y treeJSON) int {
		a, errA := strconv.Atoi(x.Name)
		b, errB := strconv.Atoi(y.Name)
		switch {
		case errA == nil && errB == nil:
			return cmp.Compare(a, b)
		case errA == nil:
			return -1
		case errB == nil:
			return 1
		}
		return strings.Compare(x.Name, y.Name)
	})
}

// precedes reports whether the other module has the next number.
func (n *treeJSON) precedes(other *treeJSON) bool {
	name := n.Name[strings.LastIndexByte(n.Name, '.')+1:]
	number, err := strconv.Atoi(name)
	next, errNext := strconv.Atoi(other.Name)
	return err == nil && errNext == nil && next == number+1
}

// alike reports whether two modules hold the same but for their names.
func (n *treeJSON) alike(other *treeJSON) bool {
	if n.Params != other.Params || n.Bytes != other.Bytes || !slices.Equal(n.Shape, other.Shape) ||
		!slices.Equal(n.DTypes, other.DTypes) || len(n.Children) != len(other.Children) {
		return false
	}
	for i := range n.Children {
		x, y := &n.Children[i], &other.Children[i]
		if x.Name != y.Name || x.Count != y.Count || !x.alike(y) {
			return false
		}
	}
	return true
}

func (a *App) printTree(tree []treeJSON) {
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "module\ttensors\tparameters\tdtypes\tsize\tshape\t")
	writeTree(w, tree, 0)
	w.Flush() // a.out keeps what goes wrong
}

// writeTree writes a line for each module; one that holds a single thing shares its line.
func writeTree(w *tabwriter.Writer, tree []treeJSON, depth int) {
	for i := range tree {
		n := &tree[i]
		name := oneLine(n.Name)
		for len(n.Children) == 1 && n.Count == 1 {
			n = &n.Children[0]
			name += "." + oneLine(n.Name)
		}
		shape, times := "", ""
		if n.Shape != nil {
			shape = tensor.Shape(n.Shape).String()
		}
		if n.Count > 1 {
			times = fmt.Sprintf("%d x ", n.Count)
		}
		fmt.Fprintf(w, "%s%s\t%s%d\t%s%d\t%s\t%s%s\t%s\t\n", strings.Repeat("  ", depth), name, times, n.Tensors, times, n.Params,
			oneLine(strings.Join(n.DTypes, ", ")), times, formatSize(n.Bytes), shape)
		writeTree(w, n.Children, depth+1)
	}
}
