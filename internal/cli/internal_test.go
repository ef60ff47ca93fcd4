package cli

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestEscalation(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	var e escalation
	require.Equal(t, "SIGINT", e.next(at(0)))
	require.Equal(t, "SIGINT", e.next(at(2.1)), "too late to mean kill")
	require.Equal(t, "SIGKILL", e.next(at(4)))
	require.Equal(t, "", e.next(at(60)), "killed and still waiting: give up")
}

// Whatever is appended and however much of the past falls off, following prints exactly what
// was appended, as long as the overlap is not ambiguous.
func TestAddedIsWhatWasAppended(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var seen []byte
		for i := range rapid.IntRange(0, 3000).Draw(t, "seen") {
			seen = append(seen, byte(i), byte(i>>8), '\n')
		}
		fresh := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "fresh")
		lost := rapid.IntRange(0, max(0, len(seen)-1200)).Draw(t, "lost")
		now := append(append([]byte{}, seen[lost:]...), fresh...)
		require.Equal(t, string(fresh), string(added(seen, now)))
	})
	require.Equal(t, "new", string(added([]byte("gone"), []byte("new"))))
	require.Equal(t, "new", string(added(nil, []byte("new"))))
}

func TestParsePlace(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]place{
		"abc:/x": {"abc", "/x"}, "abc:": {"abc", ""}, "abc:a:b": {"abc", "a:b"},
		"./a:b": {"", "./a:b"}, "/a:b": {"", "/a:b"}, ":x": {"", ":x"}, "file.txt:x": {"", "file.txt:x"}, "-": {"", "-"},
	} {
		require.Equal(t, want, parsePlace(text), text)
	}
}

// No archive name leaves the folder.
func TestLocalEntryStaysInside(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"..", "../x", "a/../../x", "/x", "a/..", "x\x00y"} {
		_, err := localEntry(bad)
		require.Error(t, err, bad)
	}
	for in, want := range map[string]string{"./": ".", ".": ".", "./a/b": "a/b", "a//b/": "a/b", "..a": "..a"} {
		got, err := localEntry(in)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

func TestWithoutHead(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]string{
		"pause sandbox id1: it is busy": "it is busy",
		"cold-pause sandbox id1: pause sandbox id1: start sandbox id1: nothing is saved": "start sandbox id1: nothing is saved",
		"pause sandbox id2: it is busy":   "pause sandbox id2: it is busy",
		"find sandbox id1: there is none": "find sandbox id1: there is none",
		"pause sandbox id1":               "pause sandbox id1",
	} {
		require.Equal(t, want, withoutHead(message, "pause", "id1"))
	}
}

func TestSeconds(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int{"0": 0, "300": 300, "5m": 300, "never": 0, "1h30m": 5400} {
		got, err := parseSeconds(in)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, bad := range []string{"-1", "-5m", "1.5s", "soon", ""} {
		_, err := parseSeconds(bad)
		require.Error(t, err, bad)
	}
	require.Equal(t, []string{"never", "5m", "90s", "2h"}, []string{idle(0), idle(300), idle(90), idle(7200)})
}
