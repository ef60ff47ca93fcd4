package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/test/trials"
)

// TestTree: a random tree of snapshots, forks and creates from them, with writes, pauses, resumes and
// deletes, against a model of what each must hold. Package sandbox's fakes do the same many more
// times (test/soak).
func TestTree(t *testing.T) {
	onSome(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		few, full, live := 25, 2500, 8
		if k.virtual {
			few, full, live = 10, 500, 4
		}
		s := trials.Begin(t, "random tree against a model", k.name, few, full)
		m := &forest{roost: r, rand: s.Rand, live: live, most: 200, nodes: map[string]*node{}}
		for s.More() {
			m.step()
			s.Count(1, t.Failed())
		}
		m.compare()
		s.Figure("nodes at the end", "%d", len(m.nodes))
		m.clear()
		r.sound()
		require.Zero(t, r.diskUsed("sandboxes"), "nothing is left")
	})
}

// forest is the model: what there is, and what each must hold.
type forest struct {
	*roost
	rand  *rand.Rand
	live  int
	most  int
	made  int
	nodes map[string]*node
}

// node is a sandbox or a snapshot.
type node struct {
	name     string
	snapshot bool
	paused   bool
	// log is every line that it, or what it comes from, wrote to its disk and its memory.
	log []string
}

// pick is a random node that is wanted, or nil.
func (m *forest) pick(wanted func(*node) bool) *node {
	var out []*node
	for _, name := range slices.Sorted(maps.Keys(m.nodes)) {
		if wanted(m.nodes[name]) {
			out = append(out, m.nodes[name])
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out[m.rand.IntN(len(out))]
}

func isSandbox(n *node) bool  { return !n.snapshot }
func isSnapshot(n *node) bool { return n.snapshot }
func isRunning(n *node) bool  { return !n.snapshot && !n.paused }
func isPaused(n *node) bool   { return !n.snapshot && n.paused }
func isAny(*node) bool        { return true }

func (m *forest) count(wanted func(*node) bool) int {
	n := 0
	for _, node := range m.nodes {
		if wanted(node) {
			n++
		}
	}
	return n
}

// step does one thing.
func (m *forest) step() {
	m.t.Helper()
	room := m.count(isRunning) < m.live
	switch at := m.rand.IntN(100); {
	case len(m.nodes) == 0 || at < 3 && room && len(m.nodes) < m.most:
		m.grow(nil, m.run("create", "--memory-mb", "256", "--timeout", "0"), false)
	case at < 20 && len(m.nodes) < m.most:
		m.capture(m.pick(isSandbox))
	case at < 35 && room && len(m.nodes) < m.most:
		m.from(m.pick(isSnapshot))
	case at < 45 && room && len(m.nodes) < m.most:
		m.split(m.pick(isSandbox))
	case at < 60:
		m.write(m.pick(isRunning))
	case at < 70:
		m.pause(m.pick(isRunning))
	case at < 80 && room:
		m.resume(m.pick(isPaused))
	case at < 97 || !room:
		m.delete(m.pick(isAny))
	default:
		m.compare()
	}
}

func (m *forest) grow(from *node, name string, snapshot bool) {
	n := &node{name: name, snapshot: snapshot}
	if from != nil {
		n.log = slices.Clone(from.log)
	}
	m.nodes[name] = n
	if from != nil && !snapshot {
		m.look(n)
	}
}

func (m *forest) capture(n *node) {
	if n == nil {
		return
	}
	m.made++
	name := fmt.Sprintf("s%d", m.made)
	m.run("snapshot", "create", n.name, "--name", name)
	m.grow(n, name, true)
}

func (m *forest) from(n *node) {
	if n != nil {
		m.grow(n, m.run("create", n.name, "--timeout", "0"), false)
	}
}

func (m *forest) split(n *node) {
	if n != nil {
		m.grow(n, m.run("fork", n.name), false)
	}
}

func (m *forest) write(n *node) {
	if n == nil {
		return
	}
	m.made++
	line := fmt.Sprintf("line-%d", m.made)
	m.sh(n.name, fmt.Sprintf("echo %s | tee -a /root/log >>/dev/shm/log; head -c 200000 /dev/urandom >/root/noise", line))
	n.log = append(n.log, line)
}

func (m *forest) pause(n *node) {
	if n != nil {
		m.run("pause", n.name)
		n.paused = true
	}
}

func (m *forest) resume(n *node) {
	if n != nil {
		m.run("resume", n.name)
		n.paused = false
		m.look(n)
	}
}

func (m *forest) delete(n *node) {
	if n == nil {
		return
	}
	if n.snapshot {
		m.run("snapshot", "rm", n.name)
	} else {
		m.run("rm", n.name)
	}
	delete(m.nodes, n.name)
}

// look reads what a sandbox holds.
func (m *forest) look(n *node) {
	m.t.Helper()
	out := m.sh(n.name, "cat /root/log 2>/dev/null; echo --; cat /dev/shm/log 2>/dev/null; true")
	disk, memory, _ := strings.Cut(out, "--")
	want := strings.Join(n.log, " ")
	require.Equal(m.t, want, strings.Join(strings.Fields(disk), " "), "the disk of %s", n.name)
	require.Equal(m.t, want, strings.Join(strings.Fields(memory), " "), "the memory of %s", n.name)
}

// compare the model with all that is.
func (m *forest) compare() {
	m.t.Helper()
	list, snapshots := m.list(), m.snapshots()
	require.Len(m.t, list, m.count(isSandbox))
	require.Len(m.t, snapshots, m.count(isSnapshot))
	for name, n := range m.nodes {
		switch {
		case n.snapshot:
			require.Contains(m.t, snapshots, name)
		case n.paused:
			require.Equal(m.t, v1.Paused, list[name].State)
		default:
			require.Equal(m.t, v1.Running, list[name].State)
			m.look(n)
		}
	}
	m.sound()
}

func (m *forest) clear() {
	for len(m.nodes) > 0 {
		m.delete(m.pick(isAny))
	}
}
