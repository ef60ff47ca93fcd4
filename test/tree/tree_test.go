// Package tree grows random trees of snapshots and forks on the real state machine, network and image
// store with the fakes of sandboxtest for machines, which are fast: thousands of operations against a
// model. The same with real sandboxes is in test/e2e.
package tree

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/sandbox"
	"github.com/roosthq/roost/internal/host/sandbox/sandboxtest"
	"github.com/roosthq/roost/test/trials"
)

// Sizes of the tree.
const (
	mostNodes   = 200
	mostRunning = 24
)

// TestTree: create, write, pause, resume, snapshot, create from, fork, delete, and now and then the end
// of the agent, in a random order. Nothing is missing, nothing is left.
func TestTree(t *testing.T) {
	t.Parallel()
	for _, kind := range []sandboxtest.Kind{sandboxtest.VM, sandboxtest.Sentry} {
		t.Run(kind.Name, func(t *testing.T) {
			t.Parallel()
			f := &forest{Host: sandboxtest.New(t, kind), t: t, nodes: map[string]*node{}}
			s := trials.Begin(t, "random tree against a model, fakes", kind.Name, 250, 5000)
			f.rand = s.Rand
			f.start()
			defer func() { f.m.Stop() }()
			for s.More() {
				f.step()
				s.Count(1, t.Failed())
			}
			f.compare()
			f.clear()
		})
	}
}

// forest is the model and what it is a model of.
type forest struct {
	*sandboxtest.Host
	t     *testing.T
	m     *sandbox.Manager
	rand  *rand.Rand
	made  int
	nodes map[string]*node
}

// node is a sandbox or a snapshot, and the note that its memory must hold.
type node struct {
	id       string
	snapshot bool
	paused   bool
	note     string
}

func isSandbox(n *node) bool  { return !n.snapshot }
func isSnapshot(n *node) bool { return n.snapshot }
func isRunning(n *node) bool  { return !n.snapshot && !n.paused }
func isPaused(n *node) bool   { return !n.snapshot && n.paused }
func isAny(*node) bool        { return true }

func (f *forest) start() {
	f.t.Helper()
	f.m = sandbox.New(sandbox.Config{
		Data: f.Data, Runtimes: f.All(), Network: f.Network, Images: f.Images, UIDs: f.UIDs,
		GuestPath: os.Args[0], GuestDigest: "guest", Logger: f.Log,
		SpaceOf: func(string) (sandbox.Space, error) { return sandbox.Space{Total: 1 << 30, Free: 1 << 30}, nil },
	})
	require.NoError(f.t, f.m.Start(f.t.Context()))
}

// restart is the end of an agent and another's beginning.
func (f *forest) restart() {
	f.t.Helper()
	f.m.Stop()
	f.Network.Stop()
	f.Connect()
	f.start()
}

func (f *forest) pick(wanted func(*node) bool) *node {
	var out []*node
	for _, id := range slices.Sorted(maps.Keys(f.nodes)) {
		if wanted(f.nodes[id]) {
			out = append(out, f.nodes[id])
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out[f.rand.IntN(len(out))]
}

func (f *forest) count(wanted func(*node) bool) int {
	n := 0
	for _, node := range f.nodes {
		if wanted(node) {
			n++
		}
	}
	return n
}

// id of the next node.
func (f *forest) id() string {
	f.made++
	return fmt.Sprintf("n%019d", f.made)
}

func (f *forest) op() sandbox.Operation { return sandbox.Operation{ID: f.id()} }

// step does one thing.
func (f *forest) step() {
	f.t.Helper()
	full, room := len(f.nodes) >= mostNodes, f.count(isRunning) < mostRunning
	at := f.rand.IntN(1000)
	switch {
	case len(f.nodes) == 0 || at < 30 && room && !full:
		f.create("", nil)
	case at < 200 && !full:
		f.on(isSandbox, f.snapshot)
	case at < 350 && room && !full:
		f.on(isSnapshot, func(n *node) { f.create(n.id, n) })
	case at < 450 && room && !full:
		f.on(isSandbox, f.fork)
	case at < 600:
		f.on(isRunning, f.write)
	case at < 700:
		f.on(isRunning, f.pause)
	case at < 800 && room:
		f.on(isPaused, f.resume)
	case at < 990 || !room:
		f.on(isAny, f.remove)
	case at < 995:
		f.restart()
	default:
		f.compare()
	}
}

func (f *forest) on(wanted func(*node) bool, do func(*node)) {
	if n := f.pick(wanted); n != nil {
		do(n)
	}
}

func (f *forest) create(snapshot string, from *node) {
	n := &node{id: f.id()}
	req := sandbox.CreateRequest{ID: n.id, Template: sandboxtest.Template, Snapshot: snapshot}
	_, err := f.m.Create(f.t.Context(), f.op(), req, nil)
	require.NoError(f.t, err)
	if from != nil {
		n.note = from.note
	}
	f.nodes[n.id] = n
	f.look(n)
}

func (f *forest) snapshot(of *node) {
	n := &node{id: f.id(), snapshot: true, note: of.note}
	_, _, err := f.m.CreateSnapshot(f.t.Context(), f.current(of), of.id, n.id)
	require.NoError(f.t, err)
	f.nodes[n.id] = n
}

func (f *forest) fork(of *node) {
	a, b := &node{id: f.id(), note: of.note}, &node{id: f.id(), note: of.note}
	req := sandbox.ForkRequest{Forks: []sandbox.Fork{{Operation: f.id(), ID: a.id}, {Operation: f.id(), ID: b.id}}}
	_, err := f.m.Fork(f.t.Context(), f.current(of), of.id, req)
	require.NoError(f.t, err)
	for _, n := range []*node{a, b} {
		f.nodes[n.id] = n
		f.look(n)
	}
}

// current is an operation on a sandbox as it is now.
func (f *forest) current(n *node) sandbox.Operation {
	f.t.Helper()
	v, err := f.m.Get(n.id)
	require.NoError(f.t, err)
	return sandbox.Operation{ID: f.id(), Generation: v.Generation}
}

func (f *forest) write(n *node) {
	f.made++
	n.note = fmt.Sprintf("%s of %d", n.id, f.made)
	f.Runtime.Note(f.uid(n), n.note)
}

// uid of a sandbox, from its journal.
func (f *forest) uid(n *node) int {
	f.t.Helper()
	var j struct {
		UID int `json:"uid"`
	}
	raw, err := os.ReadFile(f.Data.Sandbox(n.id).Journal())
	require.NoError(f.t, err)
	require.NoError(f.t, json.Unmarshal(raw, &j))
	require.NotZero(f.t, j.UID)
	return j.UID
}

func (f *forest) pause(n *node) {
	_, err := f.m.Pause(f.t.Context(), f.current(n), n.id, sandbox.PauseOptions{Reason: "test"})
	require.NoError(f.t, err)
	n.paused = true
}

func (f *forest) resume(n *node) {
	_, err := f.m.Resume(f.t.Context(), f.current(n), n.id, sandbox.ResumeOptions{})
	require.NoError(f.t, err)
	n.paused = false
	f.look(n)
}

func (f *forest) remove(n *node) {
	if n.snapshot {
		require.NoError(f.t, f.m.DeleteSnapshot(f.t.Context(), n.id))
	} else {
		require.NoError(f.t, f.m.Destroy(f.t.Context(), f.op(), n.id))
	}
	delete(f.nodes, n.id)
}

// look asks the guest what it remembers.
func (f *forest) look(n *node) {
	f.t.Helper()
	g, err := f.m.Guest(n.id, "reach")
	require.NoError(f.t, err)
	defer g.Release()
	req, err := http.NewRequestWithContext(f.t.Context(), http.MethodGet, "http://guest/notes", nil)
	require.NoError(f.t, err)
	resp, err := g.Transport.RoundTrip(req)
	require.NoError(f.t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	require.NoError(f.t, err)
	require.Equal(f.t, n.note, string(raw), "the memory of %s", n.id)
}

// compare the model with all that is.
func (f *forest) compare() {
	f.t.Helper()
	states := map[string]sandbox.State{}
	for _, v := range f.m.List() {
		states[v.ID] = v.State
	}
	require.Len(f.t, states, f.count(isSandbox))
	snapshots, err := f.m.Snapshots()
	require.NoError(f.t, err)
	require.Len(f.t, snapshots, f.count(isSnapshot))
	for _, n := range f.nodes {
		switch {
		case n.snapshot:
			_, err := f.m.Snapshot(n.id)
			require.NoError(f.t, err)
		case n.paused:
			require.Equal(f.t, sandbox.Paused, states[n.id])
		default:
			require.Equal(f.t, sandbox.Running, states[n.id])
			f.look(n)
		}
	}
	require.Len(f.t, f.Runtime.Running(), f.count(isRunning))
	f.noLeaks()
}

func (f *forest) noLeaks() {
	f.t.Helper()
	leaks, err := f.m.Leaks(f.t.Context(), false)
	require.NoError(f.t, err)
	require.Empty(f.t, leaks)
}

// clear removes all, and looks for what is left.
func (f *forest) clear() {
	f.t.Helper()
	for len(f.nodes) > 0 {
		f.remove(f.pick(isAny))
	}
	f.noLeaks()
	require.Empty(f.t, f.Slots())
	require.Empty(f.t, f.Runtime.Running())
	var left []string
	require.NoError(f.t, filepath.WalkDir(f.Data.Sandboxes(), func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && path != f.Data.Reserve() {
			left = append(left, strings.TrimPrefix(path, f.Data.Sandboxes()))
		}
		return err
	}))
	require.Empty(f.t, left)
}
