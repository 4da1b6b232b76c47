-- A Wireshark dissector for OMA DM 2.0 notifications in WAP Push (UDP port 2948).
--
-- Install: copy this file into the personal Lua plugins folder, which Wireshark shows under Help > About Wireshark > Folders
-- (~/.local/lib/wireshark/plugins), and reload with Ctrl+Shift+L. Or for one run:
--
--     tshark -X lua_script:contrib/dmnotid.lua -r capture.pcap -Y dm_notification
--
-- Filters: dm_notification.server_id == "dm.example.com", dm_notification.id == 4711, dm_notification.reason == "truncated".
--
-- It reads a datagram as `dmnotid decode` does without a configuration, with the same checks in the same order. If dmnotid
-- would discard it, `dm_notification.reason` gives the reason and marks the octet of the problem. The dissector has neither
-- secrets nor servers, so it verifies no digest and no age. Nor does it check two limits of SERVER-ID, which need tables of
-- Unicode: NFC, and runs of combining characters.
--
-- Wireshark's own WSP dissector shows pushes for other applications. The settings are under Preferences > Protocols >
-- DM_NOTIFICATION. Tested with Wireshark 4.0 and 4.4. Version 4.4 loads no Lua scripts as root: run it as another user.

local proto = Proto("dm_notification", "OMA DM 2.0 Notification")

proto.prefs.ports = Pref.range("UDP ports", "2948", "Ports on which devices receive notifications", 65535)
proto.prefs.max_octets = Pref.uint("Maximum octets of a datagram", 4096, "push.max_octets of the device")
proto.prefs.max_header_octets = Pref.uint("Maximum octets of push headers", 48, "push.max_header_octets of the device (6.1)")
proto.prefs.wsp_too = Pref.bool("Also show Wireshark's own WSP tree", false, "For notifications; other pushes always have it")

local CONNECTION_TYPES = {[0] = "any", "mobile", "wireless", "wireline"}
local OPTION_NAMES = {"SERVER-ID", "PREFERRED-CON-TYPE", "REQ-MO", "REQ-MO-CV", "SHA256-DIGEST"}

local fields = {
    tid = ProtoField.uint8("dm_notification.tid", "TID", base.HEX),
    pdu_type = ProtoField.uint8("dm_notification.pdu_type", "Type", base.HEX, {[6] = "Push"}),
    headers_length = ProtoField.uint32("dm_notification.headers_length", "HeadersLen", base.DEC),
    content_type = ProtoField.string("dm_notification.content_type", "Content-Type"),
    application_id = ProtoField.string("dm_notification.application_id", "X-Wap-Application-Id"),
    header = ProtoField.string("dm_notification.header", "Header"),
    package = ProtoField.bytes("dm_notification.package", "Package"),
    version = ProtoField.uint8("dm_notification.version", "VER", base.DEC),
    option_count = ProtoField.uint8("dm_notification.option_count", "OC", base.DEC),
    reserved = ProtoField.uint8("dm_notification.reserved", "RESERVED", base.HEX),
    id = ProtoField.uint16("dm_notification.id", "NOTIFICATION-ID", base.DEC),
    option = ProtoField.uint16("dm_notification.option", "Option Number", base.DEC),
    length = ProtoField.uint16("dm_notification.option.length", "Option Length", base.DEC),
    server_id = ProtoField.string("dm_notification.server_id", "SERVER-ID", base.UNICODE),
    preferred = ProtoField.uint8("dm_notification.preferred", "Connection type", base.DEC, CONNECTION_TYPES),
    preference = ProtoField.string("dm_notification.preference", "Preference"),
    requested_mo = ProtoField.uint16("dm_notification.requested_mo", "Requested MO", base.DEC),
    cached_mo = ProtoField.uint16("dm_notification.cached_mo", "Cached MO", base.DEC),
    validator = ProtoField.bytes("dm_notification.cached_mo.validator", "Cache validator"),
    sent_at = ProtoField.absolute_time("dm_notification.sent_at", "Signed at", base.UTC),
    digest = ProtoField.bytes("dm_notification.digest", "Digest"),
    unknown_option = ProtoField.bytes("dm_notification.unknown_option", "Value"),
    reason = ProtoField.string("dm_notification.reason", "Discarded by a device, reason"),
    field = ProtoField.string("dm_notification.reason.field", "Field"),
    offset = ProtoField.uint32("dm_notification.reason.offset", "Octet of the datagram", base.DEC),
}
proto.fields = fields

local malformed = ProtoExpert.new(
    "dm_notification.malformed", "The octets break the specification", expert.group.MALFORMED, expert.severity.ERROR)
local refused = ProtoExpert.new(
    "dm_notification.refused", "Well-formed, but not for a DM client", expert.group.PROTOCOL, expert.severity.NOTE)
proto.experts = {malformed, refused}

local SHORT_INTEGER, QUOTE, LENGTH_QUOTE = 0x80, 0x7F, 31
local APPLICATION_ID, DEFAULT_PAGE = 0x2F, 1
local DM_TEXT, DM_URI = "application/vnd.syncml.dm.notification", "x-wap-application:syncml.dm"

local FIELD_NAMES = {
    [0x07] = "Authorization", [0x0B] = "Content-Encoding", [0x0D] = "Content-Length", [0x0E] = "Content-Location",
    [0x12] = "Date", [0x14] = "Expires", [0x1D] = "Last-Modified", [0x26] = "Server", [0x29] = "User-Agent",
    [0x2F] = "X-Wap-Application-Id", [0x30] = "X-Wap-Content-URI", [0x31] = "X-Wap-Initiator-URI",
    [0x33] = "Bearer-Indication", [0x34] = "Push-Flag", [0x36] = "Profile-Diff", [0x43] = "Encoding-Version",
}

-- Fields whose value is an integer, which dates are too (WAP-230, 8.4.2): no length quote is legal before one.
local INTEGER_FIELDS = {}
for _, number in ipairs({0x05, 0x06, 0x0D, 0x12, 0x14, 0x17, 0x1A, 0x1B, 0x1D, 0x1E, 0x2F, 0x32, 0x33, 0x34, 0x3F}) do
    INTEGER_FIELDS[number] = true
end

-- Offsets count from 0 as in `dmnotid decode`, and `stop` is the offset after the last octet that may be read.
-- A discard is a Lua error whose value is this table; the dissector catches it.

local function discard(reason, field, at, problem)
    error({reason = reason, field = field, at = at, problem = problem}, 0)
end

local function octet(octets, at)
    return octets:byte(at + 1)
end

local function slice(octets, at, stop)
    return octets:sub(at + 1, stop)
end

local function hex(octets)
    return (octets:gsub(".", function(character) return ("%02x"):format(character:byte()) end))
end

-- Text in WSP is ISO 8859-1, and Wireshark shows UTF-8.
local function to_utf8(text)
    return (text:gsub("[\x80-\xFF]", function(character)
        local code = character:byte()
        return string.char(0xC0 + math.floor(code / 64), 0x80 + code % 64)
    end))
end

-- WSP: uintvar, text, lengths and values (WAP-230, 8.1.2 and 8.4.1.2)

local function read_uintvar(octets, at, stop, field)
    local value = 0
    for position = at, at + 4 do
        if position >= stop then
            discard("truncated", field, at, "the uintvar has no last octet")
        end
        local part = octet(octets, position)
        value = value * 128 + part % 128
        if part < SHORT_INTEGER then
            if value > 0xFFFFFFFF then
                discard("malformed-field", field, at, "the uintvar has more than 32 bits")
            end
            return value, position + 1
        end
    end
    discard("malformed-field", field, at, "the uintvar has more than 5 octets")
end

local function read_text(octets, at, stop, field)
    local nul = octets:find("\0", at + 1, true)
    if nul == nil or nul > stop then
        discard("truncated", field, at, "the text has no NUL at its end")
    end
    local start = at
    if octet(octets, at) == QUOTE then
        start = at + 1
        local first = octet(octets, start)
        if first > 0 and first < SHORT_INTEGER then
            discard("malformed-field", field, at, "the text has a quote before a character below 128")
        end
    end
    return slice(octets, start, nul - 1), nul
end

local function read_length(octets, at, stop, field)
    local length, start = octet(octets, at), at + 1
    if length == LENGTH_QUOTE then
        length, start = read_uintvar(octets, start, stop, field)
    end
    if start + length > stop then
        discard("truncated", field, at, ("needs %d octets, %d are left"):format(length, stop - start))
    end
    return start, start + length
end

-- Return the kind of a value ("integer", "text" or "octets"), the value, and the offset after it.
local function read_value(octets, at, stop, field)
    if at >= stop then
        discard("truncated", field, at, "the value is missing")
    end
    local first = octet(octets, at)
    if first >= SHORT_INTEGER then
        return "integer", first - SHORT_INTEGER, at + 1
    elseif first > LENGTH_QUOTE then
        return "text", read_text(octets, at, stop, field)
    end
    local start, value_stop = read_length(octets, at, stop, field)
    return "octets", slice(octets, start, value_stop), value_stop
end

-- Return a value in the form in which it is compared: a number (octets are a long-integer, of which leading zeros mean
-- nothing), or text. Numbers of more than six octets are compared as hex.
local function canonical(kind, value)
    if kind ~= "octets" then
        return value
    end
    local digits = hex(value):gsub("^00", ""):gsub("^0+", "")
    return #digits > 12 and "0x" .. digits or tonumber("0" .. digits, 16)
end

-- The push (WAP-230, 8.2.4.1)

local function read_border(octets)
    local size = #octets
    if size > proto.prefs.max_octets then
        discard("push-too-long", "datagram", 0, "has more than " .. proto.prefs.max_octets .. " octets")
    end
    if size > 1 and octet(octets, 1) ~= 0x06 then
        discard("not-a-push", "Type", 1, "is not Push")
    end
    if size < 3 then
        discard("truncated", "HeadersLen", size, "the datagram ends before it")
    end
    local length, start = read_uintvar(octets, 2, size, "HeadersLen")
    if length == 0 then
        discard("truncated", "HeadersLen", 2, "is 0, and a Content-Type must follow")
    elseif length > size - start then
        discard("truncated", "HeadersLen", 2, ("needs %d octets, %d are left"):format(length, size - start))
    end
    return length, start
end

-- Return the content type (a number or text), and the offset after it with its parameters (8.4.2.24).
local function read_content_type(octets, at, stop)
    local start, media_stop = at, stop
    local general = octet(octets, at) <= LENGTH_QUOTE
    if general then
        start, media_stop = read_length(octets, at, stop, "Content-Type")
    end
    local kind, value, after = read_value(octets, start, media_stop, "Content-Type")
    local first = octet(octets, start)
    if first == LENGTH_QUOTE or first == QUOTE then
        discard("malformed-field", "Content-Type", start, "the media type begins with a quote")
    elseif kind == "octets" and value == "" then
        discard("malformed-field", "Content-Type", start, "the media type has no octets")
    end
    return canonical(kind, value), general and media_stop or after
end

local function field_name(page, number)
    local known = page == DEFAULT_PAGE and FIELD_NAMES[number]
    local other = page ~= DEFAULT_PAGE and (" on page 0x%02x"):format(page) or ""
    return known or ("field 0x%02x"):format(number) .. other
end

local function read_page(octets, at, stop)
    local page, after = octet(octets, at), at + 1
    if page == QUOTE then
        if after >= stop then
            discard("truncated", "code page", at, "the page number is missing")
        end
        page, after = octet(octets, after), after + 1
    end
    if page == 0 then
        discard("malformed-field", "code page", at, "is 0, which is neither a field nor a page")
    end
    return page, after
end

-- Return the name of a field, the kind of its value, the value and the offset after it (8.4.2.6); without a name, the
-- value is a code page.
local function read_field(octets, at, stop, page)
    local first = octet(octets, at)
    if first >= SHORT_INTEGER then
        local number = first - SHORT_INTEGER
        local name = field_name(page, number)
        local kind, value, after = read_value(octets, at + 1, stop, name)
        if page == DEFAULT_PAGE and INTEGER_FIELDS[number] and octet(octets, at + 1) == LENGTH_QUOTE then
            discard("malformed-field", name, at + 1, "the integer has a length quote, a short length is expected")
        end
        return name, kind, value, after
    elseif first > LENGTH_QUOTE and first < QUOTE then
        local name, value_at = read_text(octets, at, stop, "field name")
        local kind, value, after = read_value(octets, value_at, stop, "'" .. name .. "'")
        -- A lone NUL is what some gateways write for the empty text.
        if octet(octets, value_at) ~= 0 and kind ~= "text" then
            discard("malformed-field", "'" .. name .. "'", value_at, "the value of a field named by text must be text")
        end
        return name, "text", value, after
    end
    return nil, nil, read_page(octets, at, stop)
end

local function show(kind, value)
    return kind == "octets" and hex(value) or to_utf8(tostring(value))
end

-- Show the fields after the content type; return the values of X-Wap-Application-Id.
local function add_fields(tree, tvb, octets, at, stop)
    local page, ids = DEFAULT_PAGE, {}
    while at < stop do
        local name, kind, value, after = read_field(octets, at, stop, page)
        local range = tvb(at, after - at)
        if name == nil then
            page = value
            tree:add(fields.header, range, "code page " .. page)
        elseif name:lower() == "x-wap-application-id" then
            local id = canonical(kind, value)
            if kind == "text" then
                id = value:lower()
            elseif value == "" then
                id = ""
            end
            ids[#ids + 1] = id == DM_URI and 7 or id
            tree:add(fields.application_id, range, show(kind, value))
        else
            tree:add(fields.header, range, to_utf8(name) .. ": " .. show(kind, value))
        end
        at = after
    end
    return ids
end

-- Refuse a push that is not for a DM client (section 6).
local function check_route(content_type, ids, at)
    local text = type(content_type) == "string" and content_type:match("^[^;]*"):match("^[ \t]*(.-)[ \t]*$"):lower()
    if content_type ~= 0x58 and text ~= DM_TEXT then
        discard("content-type-mismatch", "Content-Type", at, "a DM Notification is expected")
    elseif #ids == 0 then
        discard("application-id-missing", "X-Wap-Application-Id", at, "is missing, which means the browser (wml.ua)")
    end
    for _, id in ipairs(ids) do
        if id ~= ids[1] then
            discard("application-id-conflict", "X-Wap-Application-Id", at, "is given with different values")
        end
    end
    if ids[1] ~= 7 then
        discard("application-id-mismatch", "X-Wap-Application-Id", at, "the integer 7 or its URI is expected")
    end
end

-- Show the push; return the offset of the package.
local function add_push(tree, tvb, octets)
    local length, start = read_border(octets)
    local stop = start + length
    tree:add(fields.tid, tvb(0, 1))
    tree:add(fields.pdu_type, tvb(1, 1))
    tree:add(fields.headers_length, tvb(2, start - 2), length)
    if length > proto.prefs.max_header_octets then
        discard("push-header-too-long", "HeadersLen", 2, "at most " .. proto.prefs.max_header_octets .. " are expected")
    end
    local content_type, after = read_content_type(octets, start, stop)
    local shown = type(content_type) == "number" and ("0x%02x"):format(content_type) or to_utf8(content_type)
    tree:add(fields.content_type, tvb(start, after - start), shown)
    check_route(content_type, add_fields(tree, tvb, octets, after, stop), start)
    return stop
end

-- The package (DM Notification 2.0, section 5)

-- Return the offset (from 1) of the first sequence that is not UTF-8, and the number of characters before it.
local function scan_utf8(text)
    local at, characters = 1, 0
    while at <= #text do
        local lead = text:byte(at)
        local size, low, high = 1, 0x80, 0xBF
        if lead >= 0xC2 and lead <= 0xDF then
            size = 2
        elseif lead >= 0xE0 and lead <= 0xEF then
            -- No overlong form, and no surrogate.
            size, low, high = 3, lead == 0xE0 and 0xA0 or 0x80, lead == 0xED and 0x9F or 0xBF
        elseif lead >= 0xF0 and lead <= 0xF4 then
            size, low, high = 4, lead == 0xF0 and 0x90 or 0x80, lead == 0xF4 and 0x8F or 0xBF
        elseif lead >= 0x80 then
            return at, characters
        end
        for position = at + 1, at + size - 1 do
            local part = text:byte(position)
            if part == nil or part < low or part > high then
                return at, characters
            end
            low, high = 0x80, 0xBF
        end
        at, characters = at + size, characters + 1
    end
    return nil, characters
end

-- C0, DEL and C1 controls, the line and paragraph separators, and the BOM.
local UNFIT = {"[\0-\31\127]", "\xC2[\x80-\x9F]", "\xE2\x80[\xA8\xA9]", "\xEF\xBB\xBF"}

local function check_server_id(value, at)
    local wrong, characters = scan_utf8(value)
    if wrong then
        discard("malformed-field", "SERVER-ID", at + wrong - 1, "is not UTF-8")
    elseif value == "" then
        discard("malformed-field", "SERVER-ID", at, "is empty")
    end
    for _, pattern in ipairs(UNFIT) do
        if value:find(pattern) then
            discard("malformed-field", "SERVER-ID", at, "holds a control character, a line separator or a BOM")
        end
    end
    if characters > 256 and characters < #value then
        discard("malformed-field", "SERVER-ID", at, "has more than 256 characters, and not all of them are ASCII")
    end
end

local function check_entries(value, at, size, name)
    if #value % size ~= 0 then
        discard("malformed-field", name, at, ("has %d octets, a multiple of %d is expected"):format(#value, size))
    end
end

local function add_preference(tree, range, value)
    local names, seen = {}, {}
    for position = 0, #value - 1 do
        local number = value:byte(position + 1)
        tree:add(fields.preferred, range(position, 1))
        -- Above 3 is skipped, a repeated one counts once, and 0 ends the list.
        if CONNECTION_TYPES[number] and not seen[number] and not seen[0] then
            seen[number] = true
            names[#names + 1] = CONNECTION_TYPES[number]
        end
    end
    if #names > 0 then
        tree:add(fields.preference, range, table.concat(names, ", ")):set_generated()
    end
end

local OPTIONS = {
    function(tree, range, value, at)
        check_server_id(value, at)
        tree:add(fields.server_id, range, value)
    end,
    add_preference,
    function(tree, range, value, at)
        check_entries(value, at, 2, "REQ-MO")
        for position = 0, #value - 2, 2 do
            tree:add(fields.requested_mo, range(position, 2))
        end
    end,
    function(tree, range, value, at)
        check_entries(value, at, 6, "REQ-MO-CV")
        for position = 0, #value - 6, 6 do
            local entry = tree:add(fields.cached_mo, range(position, 2))
            entry:add(fields.validator, range(position + 2, 4))
        end
    end,
    function(tree, range, value, at)
        if #value ~= 36 then
            discard("malformed-field", "SHA256-DIGEST", at, ("has %d octets, 36 are expected"):format(#value))
        end
        tree:add(fields.sent_at, range(0, 4))
        tree:add(fields.digest, range(4, 32)):append_text(" (not verified)")
    end,
}

-- Show an Option; return its number and the offset after it.
local function add_option(tree, tvb, octets, at, before)
    local size = #octets
    if at + 2 > size then
        discard("truncated", "Option", at, ("needs 2 octets, %d are left"):format(size - at))
    end
    local first, second = octets:byte(at + 1, at + 2)
    local delta, length = math.floor(first / 16), first % 16 * 256 + second
    if delta == 0 then
        discard("malformed-field", "Option Delta", at, "is 0, and each Option Number must be greater than the one before")
    end
    local number, start = before + delta, at + 2
    if start + length > size then
        discard("truncated", "Option Value", start, ("needs %d octets, %d are left"):format(length, size - start))
    end
    local option = tree:add(fields.option, tvb(at, 2 + length), number)
    option:append_text(" (" .. (OPTION_NAMES[number] or "unknown") .. ")")
    option:add(fields.length, tvb(at, 2), length)
    local range, value = tvb(start, length), slice(octets, start, start + length)
    if OPTIONS[number] then
        OPTIONS[number](option, range, value, start)
    else
        option:add(fields.unknown_option, range)
    end
    return number, start + length
end

local function add_package(tree, tvb, octets, at)
    local size = #octets
    local first = octet(octets, at)
    if first and math.floor(first / 16) ~= 2 then
        discard("unsupported-version", "VER", at, ("is %d, 2 is expected"):format(math.floor(first / 16)))
    elseif size < at + 4 then
        discard("truncated", "header", at, ("needs 4 octets, %d are left"):format(size - at))
    end
    local option_count = first % 16 * 2 + math.floor(octet(octets, at + 1) / 128)
    tree:add(fields.version, tvb(at, 1), math.floor(first / 16))
    tree:add(fields.option_count, tvb(at, 2), option_count)
    tree:add(fields.reserved, tvb(at + 1, 1), octet(octets, at + 1) % 128)
    tree:add(fields.id, tvb(at + 2, 2))
    local number
    number, at = 0, at + 4
    for _ = 1, option_count do
        number, at = add_option(tree, tvb, octets, at, number)
    end
    if at ~= size then
        -- What a length extension of SHA-256 leaves.
        discard("trailing-octets", "end", at, ("%d octets follow the last Option"):format(size - at))
    end
end

-- The dissector

-- Reasons of octets that break the specification; with another reason the push is not for a DM client.
local BROKEN = {["truncated"] = true, ["malformed-field"] = true, ["trailing-octets"] = true, ["unsupported-version"] = true}

-- Call a function of this file; return the discard that it raised.
local function attempt(...)
    local fine, problem = pcall(...)
    if not fine and type(problem) ~= "table" then
        error(problem, 0)
    end
    return not fine and problem or nil
end

local function dissect(tvb, tree, octets)
    local package_at
    local found = attempt(function() package_at = add_push(tree, tvb, octets) end)
    if not found then
        local package = tree:add(fields.package, tvb(package_at, #octets - package_at))
        found = attempt(add_package, package, tvb, octets, package_at)
    end
    if found then
        local item = tree:add(fields.reason, tvb(found.at, math.min(1, #octets - found.at)), found.reason)
        item:add(fields.field, to_utf8(found.field)):set_generated()
        item:add(fields.offset, found.at):set_generated()
        local sentence = ("%s: %s: %s"):format(found.reason, to_utf8(found.field), found.problem)
        item:add_proto_expert_info(BROKEN[found.reason] and malformed or refused, sentence)
    end
    return found
end

local udp_ports, ports = DissectorTable.get("udp.port"), nil

-- Wireshark's own dissector of WAP Push. It has no name, so it is found by its port.
local wsp = udp_ports:get_dissector(2948)

local function call_wsp(tvb, pinfo, root)
    -- Wireshark shows an error of that dissector in the dissector's own tree.
    pcall(wsp.call, wsp, tvb, pinfo, root)
end

function proto.dissector(tvb, pinfo, root)
    -- Octets that the capture has cut off are not missing in the datagram.
    if tvb:captured_len() < tvb:reported_len() then
        call_wsp(tvb, pinfo, root)
        return tvb:len()
    end
    local tree = root:add(proto, tvb())
    local found = dissect(tvb, tree, tvb:raw())
    local for_others = found and not BROKEN[found.reason]
    if for_others or proto.prefs.wsp_too then
        call_wsp(tvb, pinfo, root)
    end
    if not for_others then
        pinfo.cols.protocol = "DM-Notification"
        pinfo.cols.info = "DM Notification" .. (found and ", discarded: " .. found.reason or "")
    end
    return tvb:len()
end

local function take_ports()
    if ports ~= nil then
        udp_ports:remove(ports, proto)
        udp_ports:add(ports, wsp)
    end
    ports = proto.prefs.ports
    udp_ports:add(ports, proto)
end

proto.prefs_changed = take_ports
take_ports()
