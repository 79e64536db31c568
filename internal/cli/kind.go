package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

// kind is a kind of resource, with the verbs that all kinds have.
type kind[T, S any] struct {
	*app
	singular, plural string
	global           bool // not of a tenant
	resources        func(c *client.Client, tenant string) *client.Resource[T, S]
	meta             func(*T) *api.Meta
	header           []string
	row              func(style, *T) []string
	show             func(style, *pairs, *T)
	filters          []string // flags of list that are filters of the API
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// of is the resources of the tenant that was chosen.
func (k *kind[T, S]) of() (*client.Resource[T, S], error) {
	c, err := k.client()
	if err != nil {
		return nil, err
	}
	return k.resources(c, k.tenant), nil
}

func (k *kind[T, S]) list() *cobra.Command {
	var all bool
	var selector []string
	filter := map[string]*string{}
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List " + k.plural, Args: exactly(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := k.client()
			if err != nil {
				return err
			}
			tenant := k.tenant
			if all {
				tenant = ""
			}
			o := client.ListOptions{Filter: map[string]string{}}
			for name, value := range filter {
				if *value != "" {
					o.Filter[name] = *value
				}
			}
			if o.Labels, err = keyValues("--label", selector); err != nil {
				return err
			}
			var items []*T
			for t, err := range k.resources(c, tenant).List(cmd.Context(), o) {
				if err != nil {
					return err
				}
				items = append(items, t)
			}
			return k.printList(cmd, items, all)
		},
	}
	if !k.global {
		cmd.Flags().BoolVarP(&all, "all-tenants", "A", false, "of all tenants (operator)")
	}
	cmd.Flags().StringArrayVarP(&selector, "label", "l", nil, "only those with this label, key=value; repeatable")
	for _, name := range k.filters {
		filter[name] = cmd.Flags().String(name, "", "only those with this "+name)
	}
	return cmd
}

func (k *kind[T, S]) printList(cmd *cobra.Command, items []*T, all bool) error {
	out := cmd.OutOrStdout()
	if k.output != "table" {
		named := make([]json.RawMessage, 0, len(items))
		for _, item := range items {
			data, err := withKind(k.plural, item)
			if err != nil {
				return err
			}
			named = append(named, data)
		}
		return k.print(out, named)
	}
	if len(items) == 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "there are no %s\n", k.plural)
		return nil
	}
	s := styleOf(out)
	var t table
	header := k.header
	if all {
		header = append([]string{"TENANT"}, header...)
	}
	t.add(header...)
	for _, item := range items {
		row := k.row(s, item)
		if all {
			row = append([]string{k.meta(item).Tenant}, row...)
		}
		t.add(row...)
	}
	t.write(out)
	return nil
}

func article(noun string) string {
	if strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an " + noun
	}
	return "a " + noun
}

func (k *kind[T, S]) showCommand() *cobra.Command {
	use, args := "show NAME", exactly("NAME")
	if k.singular == "host" {
		use, args = "show [NAME]", atMostOne
	}
	return &cobra.Command{
		Use: use, Short: "Show " + article(k.singular), Args: args, ValidArgsFunction: k.names,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := k.of()
			if err != nil {
				return err
			}
			var t *T
			if len(args) == 0 {
				t, err = k.only(cmd.Context(), r)
			} else {
				t, err = r.Get(cmd.Context(), args[0])
			}
			if err != nil {
				return err
			}
			return k.printOne(cmd, t)
		},
	}
}

// only is the one resource that there is.
func (k *kind[T, S]) only(ctx context.Context, r *client.Resource[T, S]) (*T, error) {
	var found []*T
	var names []string
	for t, err := range r.List(ctx, client.ListOptions{}) {
		if err != nil {
			return nil, err
		}
		found, names = append(found, t), append(names, k.meta(t).Name)
	}
	if len(found) != 1 {
		return nil, usagef("NAME is missing: there are %d %s: %s", len(found), k.plural, strings.Join(names, ", "))
	}
	return found[0], nil
}

// printOne writes one resource in the form that was asked for.
func (k *kind[T, S]) printOne(cmd *cobra.Command, t *T) error {
	if k.output != "table" {
		return k.printResource(cmd.OutOrStdout(), k.plural, t)
	}
	var p pairs
	m := k.meta(t)
	p.put("Name", m.Name)
	p.put("Tenant", m.Tenant)
	p.put("ID", m.ID)
	p.put("Labels", labels(m.Labels))
	p.put("Created", m.Created.UTC().Format(time.RFC3339)+" ("+age(m.Created)+" ago)")
	k.show(styleOf(cmd.OutOrStdout()), &p, t)
	p.write(cmd.OutOrStdout())
	return nil
}

// done prints the resource after an act in JSON or YAML, or the sentence.
func (k *kind[T, S]) done(cmd *cobra.Command, t any, sentence string) error {
	if k.output != "table" {
		return k.printResource(cmd.OutOrStdout(), k.plural, t)
	}
	fmt.Fprintln(cmd.OutOrStdout(), sentence)
	return nil
}

func (k *kind[T, S]) delete() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME…", Aliases: []string{"rm"}, Short: "Delete " + k.plural, Args: atLeastOne("NAME"), ValidArgsFunction: k.names,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := k.of()
			if err != nil {
				return err
			}
			for _, name := range args {
				t, err := r.Delete(cmd.Context(), name, client.DeleteOptions{})
				if err != nil {
					return err
				}
				if err := k.done(cmd, t, name+": deleted"); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// names completes the names of the kind's resources.
func (k *kind[T, S]) names(cmd *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	return slices.DeleteFunc(k.completions(cmd, k.plural), func(name string) bool { return slices.Contains(given, name) }), cobra.ShellCompDirectiveNoFileComp
}

// completionPatience is how long a shell is kept waiting for names.
const completionPatience = time.Second

// completions are the names of the resources of a kind, as far as the daemon tells them in time.
func (a *app) completions(cmd *cobra.Command, plural string) []string {
	c, err := a.client()
	if err != nil {
		return nil
	}
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completionPatience)
	defer cancel()
	tenant := a.tenant
	if plural == "hosts" || plural == "tenants" {
		tenant = ""
	}
	var out []string
	for raw, err := range c.Any(tenant, plural).List(ctx, client.ListOptions{}) {
		if err != nil {
			return out
		}
		var named struct{ Name string }
		if json.Unmarshal(*raw, &named) == nil {
			out = append(out, named.Name)
		}
	}
	return out
}

// completeFlag completes a flag with the names of a kind.
func (a *app) completeFlag(cmd *cobra.Command, flag, plural string) {
	register(cmd, flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.completions(cmd, plural), cobra.ShellCompDirectiveNoFileComp
	})
}

// complete completes a flag with fixed values.
func complete(cmd *cobra.Command, flag string, values ...string) {
	register(cmd, flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

func register(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // the flag is not the command's: a mistake in this package
	}
}

// keyValues reads values of the form key=value.
func keyValues(flag string, list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	for _, pair := range list {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, usagef("%s %q is not key=value", flag, pair)
		}
		out[key] = value
	}
	return out, nil
}
