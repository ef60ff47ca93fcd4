package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/test/trials"
)

// TestTemplateFrom: a template of a sandbox's files is small, sparse, and starts at any size and
// in every runtime; with memory it also starts with what ran.
func TestTemplateFrom(t *testing.T) {
	onSome(t, func(t *testing.T, k kind) {
		r := install(t, k.flags()...)
		r.ownImages()
		r.up()
		s := trials.Begin(t, "template of a sandbox's files", k.name, 1, 1).Exactly(1)
		id, want := r.small()
		// 200 MB stay, 300 MB more were there once.
		r.sh(id, `head -c 200000000 /dev/urandom >/root/large; head -c 300000000 /dev/zero | tr '\0' 'x' >/root/gone; sync; rm /root/gone; sync`)
		sum := strings.Fields(r.sh(id, "sha256sum /root/large"))[0]
		used := r.number(id, "du -skc /bin /etc /home /lib* /opt /root /sbin /srv /usr /var | tail -1 | cut -f1") << 10
		before := r.images()

		r.run("template", "create", "lean", "--from", id, "--disk-only")
		r.holds(id, want)
		require.Greater(t, len(r.images()), len(before)+1, "an image for each runtime")
		for blob, size := range r.images() {
			if _, had := before[blob]; !had {
				s.Figure(filepath.Base(blob)+" ÷ used", "%.2f", float64(size)/float64(used))
				require.LessOrEqual(t, size, used*12/10, "%s takes %d bytes, used were %d", blob, size, used)
			}
		}
		r.run("snapshot", "create", id, "--name", "kept")
		r.run("template", "create", "whole", "--from", "kept")
		r.run("rm", id)
		r.run("snapshot", "rm", "kept")
		r.sound()

		other := kinds[0].name
		if k.name == other {
			other = kinds[1].name
		}
		creates := [][]string{{"lean"}, {"lean", "--disk-size-mb", "8192"}, {"lean", "--runtime", other}, {"whole"}}
		if trials.Soaking() {
			creates = append(creates, []string{"whole", "--disk-size-mb", "8192"}, []string{"whole", "--runtime", other})
		}
		for _, args := range creates {
			copied := r.run(append([]string{"create"}, args...)...)
			r.holdsDisk(copied, want)
			require.Equal(t, sum, strings.Fields(r.sh(copied, "sha256sum /root/large"))[0])
			size := 5120.0
			if args[len(args)-1] == "8192" {
				size = 8192
			}
			require.InDelta(t, size, r.diskMB(copied), 200, args)
			r.run("pause", copied)
			r.run("resume", copied)
			r.holdsDisk(copied, want)
			r.run("rm", copied)
		}
		// The default size of a template with memory is that of its source, which it starts with.
		again := r.run("create", "whole", "--memory-mb", "256")
		r.holds(again, want)
		require.Equal(t, again, r.sh(again, "hostname"))
		r.run("template", "rm", "lean", "whole")
		r.holds(again, want)
		r.cycles(again, want)
		r.run("rm", again)
		r.sound()
		require.Equal(t, []string{"base"}, r.names())
		s.Count(1, false)
	})
}

// images are the files of templates, with what each takes.
func (r *roost) images() map[string]int64 {
	r.t.Helper()
	out := map[string]int64{}
	files, err := filepath.Glob(filepath.Join(r.data, "images", "blobs", "*", "*"))
	require.NoError(r.t, err)
	require.NotEmpty(r.t, files)
	for _, file := range files {
		st, err := os.Stat(file)
		require.NoError(r.t, err)
		out[file] = st.Sys().(*syscall.Stat_t).Blocks * 512
	}
	return out
}

// names of all base templates.
func (r *roost) names() []string {
	r.t.Helper()
	var l v1.TemplateList
	require.NoError(r.t, json.Unmarshal([]byte(r.run("template", "ls", "--json")), &l))
	var out []string
	for _, m := range l.Templates {
		if m.Type == "base" {
			out = append(out, m.Name)
		}
	}
	return out
}
