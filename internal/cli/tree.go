package cli

import (
	"bufio"
	"context"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

func (a *app) snapshotTreeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "tree [NAME]",
		Short: "Draw what comes from what",
		Long: `Draw which sandboxes and snapshots come from which templates, snapshots and sandboxes: state, real size
and number of children of each; a snapshot hangs below the sandbox that it was taken of. With a name or id, only what comes from that one. What is deleted but has
left something is shown as (gone). --json has the same as nested objects.`,
		Example: `  roost snapshot tree
  roost snapshot tree ready
  roost snapshot tree --json | jq '.roots[].name'`,
		Args: takes("[NAME]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkAll(args, checkName); err != nil {
				return usage(cmd, "%s", err.Error())
			}
			return nameObject(strings.Join(args, ""), a.run(a.tree)(cmd, args))
		},
	}
}

// forest is the JSON document of snapshot tree.
type forest struct {
	Roots []*node `json:"roots"`
}

func (a *app) tree(ctx context.Context, c *client, args []string) error {
	progress := startBusy(a.json, "asking for templates, snapshots and sandboxes")
	f, err := c.family(ctx)
	progress.stop()
	if err != nil {
		return err
	}
	roots := f.roots()
	if len(args) > 0 {
		root := f.find(args[0])
		if root == nil {
			return fault.New(fault.NotFound, "", "", "there is no template, snapshot or sandbox of that name").
				WithHint("`roost snapshot tree` without a name shows all")
		}
		roots = []*node{root}
	}
	if a.json {
		return printJSON(os.Stdout, forest{roots})
	}
	return drawTree(os.Stdout, roots, drawnWith(os.Stdout))
}

// family asks for everything there is. The lists are of different moments: what is made or
// deleted between them may look gone.
func (c *client) family(ctx context.Context) (*family, error) {
	sandboxes, err := c.sandboxes(ctx, "")
	if err != nil {
		return nil, err
	}
	snapshots, err := c.snapshots(ctx, "")
	if err != nil {
		return nil, err
	}
	templates, err := answer[v1.TemplateList](c.api.ListTemplatesWithResponse(ctx))
	if err != nil {
		return nil, err
	}
	return newFamily(append(snapshots, templates.Templates...), sandboxes), nil
}

// strokes are what a tree's lines begin with.
type strokes struct{ branch, last, past, blank string }

var (
	boxStrokes   = strokes{"├── ", "└── ", "│   ", "    "}
	asciiStrokes = strokes{"|-- ", "`-- ", "|   ", "    "}
)

var utf8Locale = regexp.MustCompile(`(?i)utf-?8`)

// drawnWith are box characters on a terminal that shows them.
func drawnWith(f *os.File) strokes {
	locale := firstOf(os.Getenv("LC_ALL"), os.Getenv("LC_CTYPE"), os.Getenv("LANG"))
	if isTerminal(f) && utf8Locale.MatchString(locale) {
		return boxStrokes
	}
	return asciiStrokes
}

func drawTree(w io.Writer, roots []*node, with strokes) error {
	out := bufio.NewWriter(w)
	for _, root := range roots {
		drawNode(out, root, "", "", with)
	}
	return out.Flush()
}

// drawNode draws n behind head, and its children behind indent.
func drawNode(w *bufio.Writer, n *node, head, indent string, with strokes) {
	_, _ = w.WriteString(strings.TrimRight(head+n.line(), " ") + "\n")
	for i, child := range n.Children {
		branch, more := with.branch, with.past
		if i == len(n.Children)-1 {
			branch, more = with.last, with.blank
		}
		drawNode(w, child, indent+branch, indent+more, with)
	}
}

// line is "NAME  kind, state, sizes, children".
func (n *node) line() string {
	if n.Gone {
		return "(gone) " + printable(n.Name)
	}
	parts := []string{n.label()}
	switch {
	case n.OwnBytes != nil && n.SizeBytes != nil:
		parts = append(parts, size(*n.SizeBytes)+" ("+size(*n.OwnBytes)+" own)")
	case n.SizeBytes != nil:
		parts = append(parts, size(*n.SizeBytes))
	}
	if n.DiskUsedBytes != nil {
		parts = append(parts, "disk "+size(*n.DiskUsedBytes))
	}
	if n.MemoryUsedBytes != nil {
		parts = append(parts, "memory "+size(*n.MemoryUsedBytes))
	}
	if len(n.Children) > 0 {
		parts = append(parts, count(len(n.Children), "child", "children"))
	}
	return printable(n.Name + "  " + strings.Join(parts, ", "))
}

func (n *node) label() string {
	switch {
	case n.Kind != kindSandbox && n.State != "" && n.State != ready:
		return n.State + " " + n.Kind
	case n.Kind != kindSandbox:
		return n.Kind
	case n.Fork:
		return n.State + " fork"
	default:
		return n.State
	}
}
