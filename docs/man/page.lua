-- Makes a man page of a document: `make man` runs pandoc with this filter.
--
-- The documents are written to be read as they are. What a man page wants besides is made here: NAME, SYNOPSIS and SEE ALSO,
-- sections in capitals, definitions instead of tables and lists of terms, and man pages instead of links to files.

local stringify = pandoc.utils.stringify

local PAGES = {
  ["dmnotid.md"] = {
    name = "dmnotid",
    section = "8",
    manual = "System Manager's Manual",
    says = "receive OMA DM 2.0 notifications and start the DM sessions they ask for",
    synopsis = { "dmnotid COMMAND [OPTION...] [ARGUMENT...]", "dmnotid --help | --version" },
  },
  ["configuration.md"] = {
    name = "dmnotid.yaml",
    section = "5",
    manual = "File Formats Manual",
    says = "configuration of the OMA DM 2.0 notification receiver dmnotid",
    synopsis = { "/etc/dmnotid/dmnotid.yaml" },
  },
  ["hook.md"] = {
    name = "dmnotid-hook",
    section = "7",
    manual = "Miscellaneous Information Manual",
    says = "how dmnotid starts a DM session",
    synopsis = { "hook.command or hook.socket in /etc/dmnotid/dmnotid.yaml" },
  },
}

-- The files that the pages name, as the Debian package installs them; systemd/install puts its own places there.
local DOCUMENTS = "/usr/share/doc/dmnotid/"
local INSTALLED = {
  ["config/dmnotid.yaml"] = "/etc/dmnotid/dmnotid.yaml",
  ["config/dmnotid.schema.json"] = "/usr/share/dmnotid/dmnotid.schema.json",
}

local function base(path)
  return path:match("[^/]*$")
end

local function reference(page)
  return { pandoc.Code(page.name), pandoc.Str("(" .. page.section .. ")") }
end

-- At its beginning, this keeps groff from hyphenating a word; within it, it would allow just that.
local WHOLE = pandoc.RawInline("man", "\\%")

local function ends_word(inline)
  return inline.t == "Space" or inline.t == "SoftBreak" or inline.t == "LineBreak"
end

-- Literal text is bold on a terminal, and is broken between its words alone.
function Inlines(inlines)
  local made = pandoc.List()
  local begin = 1 -- of the word that is being made
  for _, inline in ipairs(inlines) do
    if inline.t ~= "Code" then
      made:insert(inline)
      begin = ends_word(inline) and #made + 1 or begin
    else
      local words = pandoc.List()
      local text = INSTALLED[inline.text] or inline.text
      for word in text:gmatch("%S+") do
        if #words > 0 then
          words:extend({ pandoc.Space(), WHOLE })
        end
        words:insert(pandoc.Str(word))
      end
      if made[begin] ~= WHOLE then
        made:insert(begin, WHOLE)
      end
      made:insert(pandoc.Strong(words))
    end
  end
  return made
end

function Link(link)
  local target = link.target:gsub("#.*", "")
  if target == "" then
    return link.content
  end
  if target:match("^%a+:") then
    return nil
  end
  local page = PAGES[base(target)]
  if page then
    return reference(page)
  end
  local place = target:gsub("^%.%./", "")
  if place == target then
    place = "docs/" .. target
  end
  local installed = { WHOLE, pandoc.Emph(INSTALLED[place] or DOCUMENTS .. place) }
  if stringify(link.content) == base(place) then
    return installed
  end
  local said = pandoc.List(link.content)
  said:extend({ pandoc.Str(" (") })
  said:extend(installed)
  said:extend({ pandoc.Str(")") })
  return said
end

-- Returns the term of an item such as "`--config FILE`: the configuration", and what follows it; nil for any other item. A term
-- is literal text, perhaps with commas between and a remark in parentheses at the end.
local function split_term(inlines)
  local term, depth = pandoc.List(), 0
  for at, inline in ipairs(inlines) do
    local text = inline.t == "Str" and inline.text or ""
    depth = depth + select(2, text:gsub("%(", "")) - select(2, text:gsub("%)", ""))
    if depth == 0 and text:match(":$") and #term > 0 then
      if text ~= ":" then
        term:insert(pandoc.Str(text:sub(1, -2)))
      end
      return term, pandoc.List({ table.unpack(inlines, at + 2) })
    end
    if depth == 0 and inline.t == "Str" and text ~= "," and not text:match("%)$") then
      return nil
    end
    term:insert(inline)
  end
  return nil
end

-- A list of such items becomes a list of definitions, as man pages have them.
function BulletList(list)
  local items = {}
  for _, blocks in ipairs(list.content) do
    local term, meaning = split_term(blocks[1].content)
    if term == nil then
      return nil
    end
    table.insert(items, { term, { { pandoc.Plain(meaning) } } })
  end
  return pandoc.DefinitionList(items)
end

-- A row of a table of two columns becomes a definition, too.
function Table(full)
  local plain = pandoc.utils.to_simple_table(full)
  local items = {}
  for _, row in ipairs(plain.rows) do
    local term, meaning = pandoc.utils.blocks_to_inlines(row[1]), pandoc.utils.blocks_to_inlines(row[#row])
    table.insert(items, { term, { { pandoc.Plain(meaning) } } })
  end
  return pandoc.DefinitionList(items)
end

local function capitals(inlines)
  return pandoc.walk_inline(pandoc.Span(inlines), {
    Str = function(word)
      return pandoc.Str(pandoc.text.upper(word.text))
    end,
  }).content
end

local function section(title)
  return pandoc.Header(1, { pandoc.Str(title) })
end

local function program(name)
  local file = assert(io.open("dmnotid/__init__.py"))
  local value = assert(file:read("a"):match("\n" .. name .. " = \"?([%w.]+)"), name)
  file:close()
  return value
end

function Pandoc(document)
  local page = assert(PAGES[base(PANDOC_STATE.input_files[1])], "there is no man page of this document")
  local lines = {}
  for at, line in ipairs(page.synopsis) do
    if at > 1 then
      table.insert(lines, pandoc.LineBreak())
    end
    table.insert(lines, pandoc.Strong(line))
  end
  local blocks = pandoc.List({
    section("NAME"),
    pandoc.Para({ pandoc.Str(page.name .. " - " .. page.says) }),
    section("SYNOPSIS"),
    pandoc.Para(lines),
    section("DESCRIPTION"),
  })
  for _, block in ipairs(document.blocks) do
    if block.t == "Header" and block.level == 2 then
      blocks:insert(pandoc.Header(1, capitals(block.content)))
    elseif block.t == "Header" and block.level > 2 then
      blocks:insert(pandoc.Header(2, block.content))
    elseif block.t ~= "Header" then
      blocks:insert(block)
    end
  end

  local others = pandoc.List()
  for _, source in ipairs({ "dmnotid.md", "configuration.md", "hook.md" }) do
    if PAGES[source] ~= page then
      if #others > 0 then
        others:extend({ pandoc.Str(","), pandoc.Space() })
      end
      others:extend(reference(PAGES[source]))
    end
  end
  blocks:insert(section("SEE ALSO"))
  blocks:insert(pandoc.Para(Inlines(others)))

  return pandoc.Pandoc(blocks, pandoc.Meta({
    title = page.name,
    section = page.section,
    header = page.manual,
    footer = "dmnotid " .. program("__version__"),
    date = os.date("!%Y-%m-%d", tonumber(program("RELEASED_AT"))),
  }))
end
