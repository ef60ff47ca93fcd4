package e2e

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/test/trials"
)

// TestDamage: one flipped bit or lost end anywhere in what a paused sandbox stands on is refused
// before its guest runs, with the kind and a hint; undone, it resumes.
func TestDamage(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		id, want := r.small()
		r.cycles(id, want) // two generations
		r.run("pause", id)
		files := r.standsOn(id)
		require.NotEmpty(t, files)
		s := trials.Begin(t, "flipped or truncated", k.name, 12, 1000)
		s.Each(func(t *testing.T, n int) {
			r := r.as(t)
			// Each file as often as the others: most bytes are memory's.
			r.refusesDamage(id, files[n%len(files)], s.Rand)
		})
		r.run("resume", id)
		r.holds(id, want)
	})
}

// standsOn are the files of a paused sandbox that a resume reads.
func (r *roost) standsOn(id string) []string {
	r.t.Helper()
	var out []string
	root := filepath.Join(r.data, "sandboxes", id)
	require.NoError(r.t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		inside := strings.HasPrefix(path, filepath.Join(root, "captures")) || strings.HasPrefix(path, filepath.Join(root, "disk"))
		if err == nil && inside && e.Type().IsRegular() && info.Size() > 0 {
			out = append(out, path)
		}
		return err
	}))
	slices.Sort(out)
	return out
}

// refusesDamage damages a file, tries, and repairs it.
func (r *roost) refusesDamage(id, file string, random *rand.Rand) {
	r.t.Helper()
	st, err := os.Stat(file)
	require.NoError(r.t, err)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	require.NoError(r.t, err)
	defer f.Close()
	at, bit := random.Int64N(st.Size()), byte(1)<<random.IntN(8)
	repair := r.flip(f, at, bit)
	what := "bit flipped"
	if random.IntN(4) == 0 {
		repair()
		repair = r.truncate(f, at, st.Size())
		what = "truncated"
	}
	res := r.try("resume", id, "--json")
	state := r.info(id).State
	repair()
	name, _ := filepath.Rel(r.data, file)
	require.NotZero(r.t, res.code, "%s: %s at %d of %d: it was served", name, what, at, st.Size())
	require.Contains(r.t, res.stderr, "data_loss", "%s: %s at %d of %d", name, what, at, st.Size())
	require.Contains(r.t, res.stderr, `"hint"`)
	require.Equal(r.t, 3, res.code)
	require.Equal(r.t, paused, state)
}

func (r *roost) flip(f *os.File, at int64, bit byte) (repair func()) {
	r.t.Helper()
	b := make([]byte, 1)
	_, err := f.ReadAt(b, at)
	require.NoError(r.t, err)
	_, err = f.WriteAt([]byte{b[0] ^ bit}, at)
	require.NoError(r.t, err)
	return func() {
		_, err := f.WriteAt(b, at)
		require.NoError(r.t, err)
	}
}

func (r *roost) truncate(f *os.File, at, size int64) (repair func()) {
	r.t.Helper()
	end := make([]byte, size-at)
	_, err := f.ReadAt(end, at)
	require.NoError(r.t, err)
	require.NoError(r.t, f.Truncate(at))
	return func() {
		_, err := f.WriteAt(end, at)
		require.NoError(r.t, err)
	}
}
