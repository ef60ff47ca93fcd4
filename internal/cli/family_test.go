package cli

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

// born counts minutes, so that order in a test is order in the tree.
func born(minute int) time.Time { return time.Unix(int64(minute)*60, 0) }

func template(name string) v1.Template {
	at := born(0)
	return v1.Template{Id: "t-" + name, Name: name, Type: v1.Base, SizeBytes: 300 << 20, CreatedAt: &at}
}

func snapshotOf(name, source, parent string, minute int) v1.Template {
	at, own := born(minute), int64(12<<20)
	return v1.Template{Id: "t-" + name, Name: name, Type: v1.Snapshot, SizeBytes: 60 << 20, OwnBytes: &own, SourceSandboxId: &source, Parent: &parent, CreatedAt: &at}
}

func sandboxOf(id, template string, minute int) v1.Sandbox {
	return v1.Sandbox{Id: id, Template: template, State: v1.Running, CreatedAt: born(minute)}
}

func forkOf(id, source, template string, minute int) v1.Sandbox {
	s := sandboxOf(id, template, minute)
	s.ForkedFrom = &source
	return s
}

// shape is the tree by names alone.
func shape(t *testing.T, roots []*node) string {
	t.Helper()
	var out strings.Builder
	require.NoError(t, drawTree(&out, roots, strokes{". ", ". ", ". ", ". "}))
	var lines []string
	for line := range strings.Lines(out.String()) {
		name, _, _ := strings.Cut(strings.TrimRight(line, "\n"), "  ")
		lines = append(lines, name)
	}
	return strings.Join(lines, "\n")
}

func TestTreeOfEverything(t *testing.T) {
	t.Parallel()
	used := int64(20 << 20)
	paused := sandboxOf("s3", "snap1", 5)
	paused.State, paused.DiskUsedBytes, paused.MemoryUsedBytes = v1.Paused, &used, &used
	snapshots := []v1.Template{snapshotOf("snap1", "s1", "base", 2), snapshotOf("snap2", "s4", "snap1", 6)}
	f := newFamily(append(snapshots, template("base"), snapshots[0], template("other")),
		[]v1.Sandbox{paused, forkOf("s4", "s3", "snap1", 5), sandboxOf("s1", "base", 1), sandboxOf("s2", "base", 3), sandboxOf("s5", "t-snap2", 7)})
	var out strings.Builder
	require.NoError(t, drawTree(&out, f.roots(), boxStrokes))
	require.Equal(t, `base  template, 300 MiB, 2 children
├── s1  running, 1 child
│   └── snap1  snapshot, 60 MiB (12 MiB own), 1 child
│       └── s3  paused, disk 20 MiB, memory 20 MiB, 1 child
│           └── s4  running fork, 1 child
│               └── snap2  snapshot, 60 MiB (12 MiB own), 1 child
│                   └── s5  running
└── s2  running
other  template, 300 MiB
`, out.String())
	out.Reset()
	require.NoError(t, drawTree(&out, []*node{f.find("t-snap1")}, asciiStrokes))
	require.Contains(t, out.String(), "snap1  snapshot, 60 MiB (12 MiB own), 1 child\n`-- s3  paused, ")
}

func TestTreeOfWhatIsGone(t *testing.T) {
	t.Parallel()
	f := newFamily([]v1.Template{template("base"), snapshotOf("snap1", "x1", "base", 2), snapshotOf("snap2", "x2", "away", 3)},
		[]v1.Sandbox{sandboxOf("s1", "snap0", 1), forkOf("s2", "x1", "base", 4), forkOf("s3", "x3", "base", 5)})
	require.Equal(t, `base
. (gone) x1
. . snap1
. . s2
. (gone) x3
. . s3
(gone) away
. (gone) x2
. . snap2
(gone) snap0
. s1`, shape(t, f.roots()))
}

// A template made of a snapshot hangs below the snapshot, also where the sandbox of both is
// known; one made of the sandbox below the sandbox.
func TestTreeOfTemplatesFromSnapshots(t *testing.T) {
	t.Parallel()
	fromSnapshot, fromSandbox, fromName := snapshotOf("t1", "s1", "snap1", 3), snapshotOf("t2", "s1", "base", 4), template("t3")
	parent := "snap1"
	fromName.Parent = &parent
	f := newFamily([]v1.Template{template("base"), snapshotOf("snap1", "s1", "base", 2), fromSnapshot, fromSandbox, fromName}, []v1.Sandbox{sandboxOf("s1", "base", 1)})
	require.Equal(t, "base\n. s1\n. . snap1\n. . . t3\n. . . t1\n. . t2", shape(t, f.roots()))
}

func TestTreeShowsWhatStartsNothing(t *testing.T) {
	t.Parallel()
	lost, state := snapshotOf("snap1", "", "", 1), "lost"
	lost.State = &state
	require.Equal(t, "snap1  lost snapshot, 60 MiB (12 MiB own)", newFamily([]v1.Template{lost}, nil).find("snap1").line())
}

// Of several that came from one that is gone, the one that knows where that came from decides.
func TestTreeOfAGoneSandboxWhoseTemplateOneChildKnows(t *testing.T) {
	t.Parallel()
	f := newFamily([]v1.Template{template("base"), snapshotOf("a", "x", "", 1), snapshotOf("b", "x", "base", 2)}, nil)
	require.Equal(t, "base\n. (gone) x\n. . a\n. . b", shape(t, f.roots()))
}

func TestTreeOfRings(t *testing.T) {
	t.Parallel()
	self := template("self")
	self.Parent = &self.Name
	f := newFamily([]v1.Template{self, snapshotOf("a", "sa", "b", 1), snapshotOf("b", "sb", "a", 1)},
		[]v1.Sandbox{sandboxOf("sa", "b", 0), sandboxOf("sb", "a", 0), forkOf("s1", "s1", "self", 2)})
	require.Equal(t, 6, strings.Count(shape(t, f.roots()), "\n")+1, "each once")
}

func TestTreeIsDeep(t *testing.T) {
	t.Parallel()
	const depth = 500
	templates, sandboxes := []v1.Template{template("n0")}, []v1.Sandbox{}
	for i := range depth {
		sandboxes = append(sandboxes, sandboxOf(fmt.Sprintf("s%d", i), fmt.Sprintf("n%d", i), i))
		templates = append(templates, snapshotOf(fmt.Sprintf("n%d", i+1), fmt.Sprintf("s%d", i), fmt.Sprintf("n%d", i), i))
	}
	f := newFamily(templates, sandboxes)
	require.Len(t, f.roots(), 1)
	lines := strings.Split(shape(t, f.roots()), "\n")
	require.Len(t, lines, 2*depth+1)
	require.Equal(t, strings.Repeat(". ", 2*depth)+fmt.Sprintf("n%d", depth), lines[2*depth])
}

// Whatever a server says comes from what, the tree has every template and sandbox once, and
// ends.
func TestTreeHasEverythingOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom([]string{"", "a", "b", "c", "d", "e", "f"})
		var templates []v1.Template
		for _, n := range rapid.SliceOfDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), rapid.ID).Draw(t, "templates") {
			templates = append(templates, snapshotOf(n, name.Draw(t, "source"), name.Draw(t, "parent"), 0))
		}
		var sandboxes []v1.Sandbox
		for _, id := range rapid.SliceOfDistinct(rapid.SampledFrom([]string{"d", "e", "f"}), rapid.ID).Draw(t, "sandboxes") {
			sandboxes = append(sandboxes, forkOf(id, name.Draw(t, "fork of"), name.Draw(t, "template"), 0))
		}
		f := newFamily(templates, sandboxes)
		seen := map[string]int{}
		var walk func(*node)
		walk = func(n *node) {
			if !n.Gone {
				seen[n.Name]++
			}
			for _, child := range n.Children {
				walk(child)
			}
		}
		for _, root := range f.roots() {
			walk(root)
		}
		require.Len(t, seen, len(templates)+len(sandboxes))
		for n, times := range seen {
			require.Equal(t, 1, times, n)
		}
	})
}

func TestDurations(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{"0.4 ms", "9.9 ms", "10 ms", "999 ms", "1.0 s", "61.2 s"},
		[]string{duration(0.42), duration(9.94), duration(9.96), duration(999.4), duration(999.6), duration(61234)})
}
