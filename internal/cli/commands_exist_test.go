package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
)

// Commands that the binary adds to these, and cobra's own.
var elsewhere = []string{"up", "uninstall", "template build", "completion", "help", "COMMAND"}

// mention is a command line in a hint, a help text or a document: "roost" and what follows on
// the line, behind a backtick, a line's or cell's begin, or a shell's.
var mention = regexp.MustCompile("(?m)(?:`|^ *|\\$\\(|&& |\\| |\"| {2})roost ([a-z]+)((?: [^`\"|)#;&\\n]+)?)")

// What a person is told to type must be there: commands, sub-commands and flags.
func TestCommandsInHintsAndDocumentsExist(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
	for _, page := range []string{"cli", "operations", "api", "templates", "security", "from-e2b"} { // What is for users.
		files = append(files, filepath.Join("../../docs", page+".md"))
	}
	found := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, m := range mention.FindAllStringSubmatch(string(text), -1) {
			found++
			words, _, _ := strings.Cut(m[2], "$(")
			checkMention(t, file, m[1], strings.Fields(words))
		}
	}
	require.Greater(t, found, 100, "the expression still finds them")
}

func checkMention(t *testing.T, file, name string, rest []string) {
	t.Helper()
	line := strings.Join(append([]string{"roost", name}, rest...), " ")
	if slices.Contains(elsewhere, name) || len(rest) > 0 && slices.Contains(elsewhere, name+" "+rest[0]) {
		return
	}
	root := New(Options{})
	cmd, rest, err := root.Find(append([]string{name}, rest...))
	require.NoError(t, err, "%s: %s", file, line)
	require.NotEqual(t, root, cmd, "%s: %s", file, line)
	if cmd.HasSubCommands() && len(rest) > 0 {
		require.NotRegexp(t, `^[a-z]+$`, rest[0], "%s: no such sub-command: %s", file, line)
	}
	checkFlags(t, cmd, rest, file+": "+line)
}

// checkFlags looks at long flags before "--", behind which another program's stand.
func checkFlags(t *testing.T, cmd *cobra.Command, words []string, line string) {
	t.Helper()
	for _, word := range words {
		if word == "--" {
			return
		}
		if name, isLong := strings.CutPrefix(word, "--"); isLong {
			name, _, _ = strings.Cut(strings.TrimRight(name, "].,:"), "=")
			known := cmd.Flags().Lookup(name) != nil || cmd.InheritedFlags().Lookup(name) != nil || name == "help"
			require.True(t, known, "%s: no flag --%s", line, name)
		}
	}
}
