package gvisor

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/runtime"
)

// Groups are the leaves of starts, and nothing else that lies beside them or has a name like theirs.
func TestGroups(t *testing.T) {
	t.Parallel()
	parent := fmt.Sprintf("roost-groups-%d", os.Getpid())
	c := findCgroups(parent)
	t.Cleanup(func() { require.NoError(t, RemoveCgroups(parent)) })
	if c.version == 0 {
		t.Skip("this host lets nobody make cgroups")
	}
	const id = "aaaaaaaaaaaaaaaaaaaa"
	other := parent + "1" // another parent, of which this one's name is a prefix
	mk := func(parent, leaf string) string {
		dir := filepath.Join(cgroups{parent: parent, version: c.version}.dir("memory"), leaf)
		require.NoError(t, os.MkdirAll(dir, 0o755))
		return dir
	}
	mine, boot := mk(parent, id+"-300001"), mk(parent, "template-300002")
	theirs := mk(other, id+"-300001")
	for _, name := range []string{"probe-300003", id + "a-300004", id + "-0", id + "-x", "lost+found"} {
		mk(parent, name)
	}
	r := &Runtime{cgroups: c}
	found, err := r.Held(t.Context())
	require.NoError(t, err)
	require.ElementsMatch(t, []runtime.Held{
		{Kind: "cgroup", Name: id + "-300001", ID: id, UID: 300001}, {Kind: "cgroup", Name: "template-300002", ID: "template", UID: 300002},
	}, found)
	for _, g := range found {
		require.NoError(t, r.GiveBack(t.Context(), g))
		require.NoError(t, r.GiveBack(t.Context(), g), "idempotent")
	}
	require.NoDirExists(t, mine)
	require.NoDirExists(t, boot)
	require.DirExists(t, theirs)
	require.NoError(t, RemoveCgroups(other))
}
