package cli

import (
	"cmp"
	"slices"
	"time"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

// What a node of the tree is.
const (
	kindTemplate = "template"
	kindSnapshot = "snapshot"
	kindSandbox  = "sandbox"
)

// node is a template, snapshot or sandbox with what comes from it.
type node struct {
	Kind string `json:"kind"`
	// Name is the id of a sandbox.
	Name string `json:"name"`
	ID   string `json:"id,omitempty"`
	// Gone: it is deleted, and here for what came from it.
	Gone bool `json:"gone"`
	// Fork: it is a fork of the node that it hangs below.
	Fork  bool   `json:"fork,omitempty"`
	State string `json:"state,omitempty"`
	// SizeBytes and OwnBytes are a template's or snapshot's, the others a sandbox's.
	SizeBytes       *int64     `json:"size_bytes,omitempty"`
	OwnBytes        *int64     `json:"own_bytes,omitempty"`
	MemoryUsedBytes *int64     `json:"memory_used_bytes,omitempty"`
	DiskUsedBytes   *int64     `json:"disk_used_bytes,omitempty"`
	CreatedAt       *time.Time `json:"created_at,omitempty"`
	Children        []*node    `json:"children"`

	parent *node
	// source is the sandbox that a template or snapshot was taken of.
	source string
}

// family is everything there is, and which of it came from which.
type family struct {
	all       []*node
	templates map[string]*node // by name, and by id where no name is the same
	sandboxes map[string]*node
}

// newFamily links templates (snapshots among them) and sandboxes. Whatever the server said, the
// result is a forest: a parent that is gone gets a node, and a link that would close a ring is
// left out.
func newFamily(templates []v1.Template, sandboxes []v1.Sandbox) *family {
	f := &family{templates: map[string]*node{}, sandboxes: map[string]*node{}}
	for _, t := range templates {
		f.addTemplate(t)
	}
	for _, s := range sandboxes {
		f.addSandbox(s)
	}
	for _, t := range templates {
		if n := f.templates[t.Name]; n.parent == nil {
			hang(n, f.origin(n, text(t.Parent)))
		}
	}
	for _, s := range sandboxes {
		if n := f.sandboxes[s.Id]; n.parent == nil {
			hang(n, f.maker(s))
		}
	}
	f.sort()
	return f
}

// addTemplate takes a snapshot once, though two lists may have it.
func (f *family) addTemplate(t v1.Template) {
	if known := f.templates[t.Name]; known != nil && known.Name == t.Name {
		return
	}
	n := &node{
		Kind: kindTemplate, Name: t.Name, ID: t.Id, State: text(t.State), SizeBytes: &t.SizeBytes, OwnBytes: t.OwnBytes,
		CreatedAt: t.CreatedAt, source: text(t.SourceSandboxId),
	}
	if t.Type == v1.Snapshot {
		n.Kind = kindSnapshot
	}
	f.templates[t.Name] = f.add(n)
	if f.templates[t.Id] == nil && t.Id != "" {
		f.templates[t.Id] = n
	}
}

func (f *family) addSandbox(s v1.Sandbox) {
	f.sandboxes[s.Id] = f.add(&node{
		Kind: kindSandbox, Name: s.Id, ID: s.Id, State: string(s.State), Fork: text(s.ForkedFrom) != "",
		MemoryUsedBytes: s.MemoryUsedBytes, DiskUsedBytes: s.DiskUsedBytes, CreatedAt: &s.CreatedAt,
	})
}

func (f *family) add(n *node) *node {
	n.Children = []*node{}
	f.all = append(f.all, n)
	return n
}

// origin is what a template or snapshot comes from: a snapshot, when its parent was taken of the
// same sandbox, else the sandbox that it was taken of, else its parent.
func (f *family) origin(n *node, parent string) *node {
	p := f.templates[parent]
	switch {
	case n.source == "" && parent == "":
		return nil
	case n.source == "" || p != nil && p != n && p.source == n.source:
		return f.template(parent)
	default:
		return f.sandbox(n.source, parent)
	}
}

// maker is what a sandbox was made from.
func (f *family) maker(s v1.Sandbox) *node {
	if source := text(s.ForkedFrom); source != "" {
		return f.sandbox(source, s.Template)
	}
	return f.template(s.Template)
}

// template is the one of that name; one that is gone has no known parent.
func (f *family) template(name string) *node {
	if f.templates[name] == nil {
		f.templates[name] = f.add(&node{Kind: kindTemplate, Name: name, Gone: true})
	}
	return f.templates[name]
}

// sandbox is the one of that id; one that is gone came from the template, as far as anybody
// still knows.
func (f *family) sandbox(id, template string) *node {
	n := f.sandboxes[id]
	if n == nil {
		n = f.add(&node{Kind: kindSandbox, Name: id, ID: id, Gone: true})
		f.sandboxes[id] = n
	}
	if n.Gone && n.parent == nil && template != "" {
		hang(n, f.template(template))
	}
	return n
}

// hang makes n a child of parent, unless parent comes from n.
func hang(n, parent *node) {
	for p := parent; p != nil; p = p.parent {
		if p == n {
			return
		}
	}
	if parent != nil {
		n.parent = parent
		parent.Children = append(parent.Children, n)
	}
}

// sort puts siblings into the order of their making, those that are gone last.
func (f *family) sort() {
	slices.SortFunc(f.all, byAge)
	for _, n := range f.all {
		slices.SortFunc(n.Children, byAge)
	}
}

func byAge(a, b *node) int {
	at := func(n *node) time.Time {
		if n.CreatedAt == nil {
			return time.Time{}
		}
		return *n.CreatedAt
	}
	if a.Gone != b.Gone {
		if a.Gone {
			return 1
		}
		return -1
	}
	return cmp.Or(at(a).Compare(at(b)), cmp.Compare(a.Name, b.Name))
}

// roots are those that come from nothing.
func (f *family) roots() []*node {
	out := []*node{}
	for _, n := range f.all {
		if n.parent == nil {
			out = append(out, n)
		}
	}
	return out
}

// find is a template, snapshot or sandbox by its name or id; nil when there is none.
func (f *family) find(name string) *node {
	if n := f.templates[name]; n != nil {
		return n
	}
	return f.sandboxes[name]
}
