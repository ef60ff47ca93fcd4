package cli

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

func (a *app) templateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "template",
		Short: "What sandboxes start from",
		Example: `  roost template ls
  roost template create django --from $id
  roost template rm django`,
	}
	cmd.AddCommand(a.templateLsCommand(), a.templateCreateCommand(), a.templateRmCommand())
	cmd.AddCommand(a.opts.TemplateCommands...)
	return group(cmd)
}

// group makes a bare group command a usage error instead of a silent help page with code 0.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usage(cmd, "unknown command %q", args[0])
		}
		return usage(cmd, "a command is missing")
	}
	return cmd
}

func (a *app) templateLsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List templates and snapshots",
		Long: `List templates and snapshots, newest first. FROM is the sandbox or snapshot that one was made of, CHILDREN are the sandboxes
that were made from it, forks of those, and the snapshots that were taken of them. SIZE is real use on the host; WARM are the sizes (vCPUs x memory)
that start by restoring memory, other sizes boot once.`,
		Example: `  roost template ls
  roost template ls --json | jq -r '.templates[].name'`,
		Args: takes(),
		RunE: a.run(func(ctx context.Context, c *client, _ []string) error {
			list, err := answer[v1.TemplateList](c.api.ListTemplatesWithResponse(ctx))
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(os.Stdout, list)
			}
			return templateTable(list.Templates)
		}),
	}
}

func templateTable(templates []v1.Template) error {
	t := newTable(os.Stdout, "NAME", "TYPE", "FROM", "CHILDREN", "SIZE", "AGE", "STATE", "WARM", "DIGEST")
	for _, m := range templates {
		from := firstOf(text(m.SourceSandboxId), text(m.Parent), "-")
		t.row(m.Name, string(m.Type), from, children(m), size(m.SizeBytes), madeAge(m), stateOf(m), warmSizes(m), m.Digest)
	}
	return t.flush()
}

func madeAge(m v1.Template) string {
	if m.CreatedAt == nil {
		return "-"
	}
	return age(*m.CreatedAt)
}

func children(m v1.Template) string { return orUnknown(m.Children, strconv.Itoa) }

// ready is the state of a template that sandboxes start from.
const ready = "ready"

// stateOf is a template's state, and the reason when there is one.
func stateOf(m v1.Template) string {
	if reason := text(m.Reason); reason != "" {
		return orDash(m.State) + " (" + reason + ")"
	}
	return orDash(m.State)
}

func ownSize(m v1.Template) string { return orUnknown(m.OwnBytes, size) }

func warmSizes(m v1.Template) string {
	if m.WarmSizes == nil || len(*m.WarmSizes) == 0 {
		return "-"
	}
	var out []string
	for _, s := range *m.WarmSizes {
		size := fmt.Sprintf("%dx%s", s.Vcpus, strings.ReplaceAll(mib(s.MemoryMb), " ", ""))
		if !slices.Contains(out, size) { // There is one for each disk size, which they do not tell.
			out = append(out, size)
		}
	}
	return strings.Join(out, ",")
}
